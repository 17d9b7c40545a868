/**
 * The events in the store, in four scenes: an order passes through; cards are refused; orders flood in and a worker
 * crashes while it handles them; everything is finished, and an analyst reads what has happened.
 *
 * This process plays the customers, who order at the shop, and the operator. It does not take part in the work or in
 * recovery: workers and broker recover by themselves.
 */
import { connect, type QueueInfo, type Sluice } from '@sluice/client'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { Conditions } from '../demo/conditions.js'
import type { Stop } from '../demo/part.js'
import { BROKER_PROGRAM, type Process } from '../rig/program.js'
import { freePort } from '../rig/scratch.js'
import type { Stage } from '../demo/stage.js'
import { Book } from './book.js'
import type { Crash, Evidence, Overtaking } from './judgement.js'
import type { Lines } from './lines.js'
import {
  HAPPENINGS,
  History,
  OPTIONS,
  Payments,
  QUEUES,
  Reminders,
  type Happening,
  type Order,
} from './orders.js'
import type { Done, Place, Report, Step } from './reports.js'

const WAVE_ORDERS = 20
const WAVE_MS = 250
/** Number of waves after which more workers are started. */
const WAVES_ALONE = 3
/** Maximum number of waves. The flood ends earlier once enough orders are placed and the added workers are running. */
const WAVES_MAX = 40
const LOOK_MS = 350
const POLL_MS = 20
/**
 * Delay of an ordinary reminder. It is so long that no reminder is sent while a payment is in progress, even on a slow
 * machine.
 */
const REMIND_LATE = '10m'
/** Delay of the reminder for the order that stays unpaid. */
const REMIND_SOON = '3s'

const ITEMS = ['a lamp', 'a kettle', 'a chair', 'a clock', 'two mugs', 'a rug', 'a mirror']
/** Number of customers who order in the flood; each of them orders several times. */
const CUSTOMERS = 50

const SHOP = new URL('./shop.js', import.meta.url)
const PAYMENT = new URL('./payment.js', import.meta.url)
const STOCK = new URL('./stock.js', import.meta.url)
const MAIL = new URL('./mail.js', import.meta.url)
const ANALYST = new URL('./analyst.js', import.meta.url)

export interface Settings extends Stage {
  /** Minimum number of orders in the flood. */
  readonly flood: number
  readonly lines: Lines
}

interface Member {
  readonly name: string
  readonly process: Process
  isReady: boolean
  isAtWork: boolean
}

export class Store {
  readonly #settings: Settings
  readonly #conditions = new Conditions()
  readonly #members = new Map<string, Member>()
  readonly #placed: Order[] = []
  readonly #printed = new Set<string>()
  readonly #reports: (Report & { readonly by: string })[] = []
  #sluice: Sluice | undefined
  #url = ''
  #orders = 0
  #longest = 0
  #history: readonly Happening[] | undefined

  constructor(settings: Settings) {
    this.#settings = settings
  }

  get whereabouts(): string {
    return `${this.#placed.length} orders placed, ${this.#done('charged').length} charged, ${this.#done('mailed').length} mailed`
  }

  async play(): Promise<Evidence> {
    const { directory, processes, lines, signal } = this.#settings
    const port = await freePort()
    this.#url = `sluice://127.0.0.1:${port}`
    const args = ['serve', '--port', String(port), '--data-dir', join(directory, 'data')]
    const broker = processes.start('broker', BROKER_PROGRAM, args, join(directory, 'broker.log'))
    const sluice = (this.#sluice = await connect(this.#url, {
      name: 'operator',
      connectTimeout: '30s',
      signal,
    }))
    for (const queue of QUEUES) await sluice.queues.ensure(queue, OPTIONS)
    await sluice.streams.ensure(History)
    await sluice.topics.bind(HAPPENINGS, History)
    await this.#hire([
      ['shop', SHOP],
      ['payment 1', PAYMENT],
      ['payment 2', PAYMENT],
      ['stock 1', STOCK],
      ['mail 1', MAIL],
    ])
    lines.say('store', `open: ${this.#members.size} processes and a broker, pid ${broker.child.pid}`)

    await this.#oneOrder()
    const redriven = await this.#badCards(sluice)
    const { overtaking, crash } = await this.#flood(sluice)
    const queues = await this.#finish(sluice)
    const entries = (step: Step): ReturnType<Book['entries']> => new Book(directory, step).entries()
    return {
      placed: this.#placed,
      books: {
        charged: entries('charged'),
        picked: entries('picked'),
        mailed: entries('mailed'),
        reminded: entries('reminded'),
      },
      reports: this.#reports,
      history: this.#history!,
      queues,
      redriven,
      longest: this.#longest,
      overtaking,
      crash,
    }
  }

  /** Closes the connection, after success and failure. */
  async close(): Promise<void> {
    // The broker may have ended already.
    await this.#sluice?.close({ timeout: 0 }).catch(() => {})
  }

  async #oneOrder(): Promise<void> {
    const { lines } = this.#settings
    lines.heading('An order')
    const order = this.#order('Ada')
    this.#place([order], true)
    await this.#conditions.until(() => this.#isMailed([order]))
    lines.say('shop', `did not see the answer for ${order.id} and sends it again`)
    this.#member('shop').process.send({ orders: [order] } satisfies Place)
    await this.#conditions.until(() =>
      this.#reports.some((report) => report.kind === 'placed' && report.duplicate),
    )
  }

  /** Runs the scene of the bad cards; returns the number of redriven orders. */
  async #badCards(sluice: Sluice): Promise<number> {
    const { directory, lines } = this.#settings
    lines.heading('Bad cards')
    const declined = this.#order('Ben', { card: 'declined once' })
    const behind = this.#order('Ben')
    const beside = this.#order('Cleo')
    const expired = this.#order('Dora', { card: 'expired', remindAfter: REMIND_SOON })
    this.#place([declined, behind, beside, expired], true)
    await this.#conditions.until(
      () =>
        this.#isMailed([declined, behind, beside]) && this.#reports.some(({ kind }) => kind === 'refused'),
    )
    await this.#settled(sluice, ({ dead }) => dead === 1)
    const { messages } = await sluice.dead.list(Payments)
    for (const { body, error, attempts } of messages) {
      lines.say('operator', `finds a dead letter: ${body.id}, "${error}", tries ${attempts}`)
    }
    await this.#conditions.until(() => this.#done('reminded').length > 0)
    lines.say('Dora', 'has a new card')
    new Book(directory, 'new cards').enter('Dora', 'operator')
    const { redriven } = await sluice.dead.redrive(Payments, { id: expired.id })
    lines.say('operator', `redrives ${expired.id}: ${redriven} dead letter is back in its queue`)
    await this.#conditions.until(() => this.#isMailed([expired]))
    return redriven
  }

  async #flood(sluice: Sluice): Promise<{ overtaking: Overtaking; crash: Crash }> {
    const { flood, lines } = this.#settings
    lines.heading('A flood')
    const helpers = ['payment 3', 'payment 4']
    const areHelping = (): boolean => helpers.every((name) => this.#members.get(name)?.isAtWork)
    let isOver = false
    const watched = this.#watch(sluice, (info) => isOver && isEmpty(info))
    watched.catch(this.#settings.fail)
    let hired: Promise<void> | undefined
    for (let wave = 0; wave < WAVES_MAX && !(wave * WAVE_ORDERS >= flood && areHelping()); wave++) {
      if (wave === WAVES_ALONE) {
        lines.say('operator', `starts ${helpers.join(' and ')}`)
        hired = this.#hire(helpers.map((name) => [name, PAYMENT]))
      }
      const orders = Array.from({ length: WAVE_ORDERS }, () =>
        this.#order(`customer ${this.#orders % CUSTOMERS}`),
      )
      this.#place(orders, false)
      await pause(WAVE_MS)
    }
    await hired
    const overtaking = this.#overtake()
    const crash = await this.#crash(sluice)
    isOver = true
    await watched
    return { overtaking, crash }
  }

  #overtake(): Overtaking {
    const { lines } = this.#settings
    const done = new Set(this.#done('charged').map(({ order }) => order))
    const waiting = this.#placed.filter(({ id }) => !done.has(id)).map(({ id }) => id)
    const order = this.#order('Edda', { express: true })
    lines.say('Edda', `pays for express: ${order.id} waits behind ${waiting.length} others`)
    this.#place([order], true)
    return { order: order.id, waiting }
  }

  /** Kills a worker that has charged a card but not yet acknowledged the order. */
  async #crash(sluice: Sluice): Promise<Crash> {
    const { lines } = this.#settings
    const order = this.#order('Emil', { express: true, card: 'slow' })
    this.#place([order], true)
    const charges = (): (Done & { readonly by: string })[] =>
      this.#done('charged').filter((done) => done.order === order.id)
    await this.#conditions.until(() => charges().length > 0)
    const worker = charges()[0]!.by
    const { messages } = await sluice.queues.peek(Payments, { state: 'leased' })
    const neighbours = messages
      .filter(({ holder, body }) => holder === worker && body.id !== order.id)
      .map(({ body }) => body.id)
    await this.#member(worker).process.kill()
    lines.say('operator', `SIGKILL for ${worker}: ${order.id} is charged, but not reported;`)
    lines.say('operator', `${neighbours.length} more orders were held by it and not started`)
    const rest = (): (Done & { readonly by: string })[] =>
      this.#done('charged').filter((done) => neighbours.includes(done.order))
    await this.#conditions.until(() => charges().length > 1 && rest().length >= neighbours.length)
    const tries = [...new Set(rest().map(({ attempt }) => attempt))].join(', ')
    lines.say('store', `the ${neighbours.length} others went to its colleagues, still on try ${tries}`)
    return { order: order.id, worker, neighbours }
  }

  /** Waits for the last mail and the end of every process; returns the broker's counts of each queue. */
  async #finish(sluice: Sluice): Promise<QueueInfo[]> {
    const { lines } = this.#settings
    lines.heading('The end')
    await this.#conditions.until(() => this.#isMailed(this.#placed))
    for (const queue of QUEUES) await this.#settled(sluice, isEmpty, queue)
    const queues = await Promise.all(QUEUES.map((queue) => sluice.queues.get(queue)))
    const { cancelled, acked } = queues.find(({ name }) => name === Reminders.name)!
    await this.#hire([['analyst', ANALYST]])
    await this.#conditions.until(() => this.#history !== undefined)
    const revenue = this.#history!.reduce((sum, { step, total }) => sum + (step === 'charged' ? total : 0), 0)
    lines.say(
      'analyst',
      `reads ${this.#history!.length} happenings from the beginning: ${revenue} EUR charged`,
    )
    lines.say('store', `reminders: ${acked} sent, ${cancelled} cancelled as their orders were paid`)
    for (const { process } of this.#members.values()) {
      process.mayEnd = true
      process.send({ stop: true } satisfies Stop)
    }
    await Promise.all([...this.#members.values()].map(({ process }) => process.ended))
    lines.say('store', `closed: ${this.#placed.length} orders, the last mail is out`)
    return queues
  }

  /** Starts the processes; resolves when they are ready to work. */
  async #hire(names: readonly (readonly [string, URL])[]): Promise<void> {
    const { directory, processes } = this.#settings
    const members = names.map(([name, program]) => {
      const log = join(directory, 'clients.log')
      const args = [this.#url, name, directory]
      const process = processes.startReporting(name, program, args, log, (report) =>
        this.#reported(member, report as Report),
      )
      const member: Member = { name, process, isReady: false, isAtWork: false }
      this.#members.set(name, member)
      return member
    })
    await this.#conditions.until(() => members.every(({ isReady }) => isReady))
  }

  #member(name: string): Member {
    const member = this.#members.get(name)
    if (member === undefined) throw new Error(`The store has no ${name}.`)
    return member
  }

  #reported(member: Member, report: Report): void {
    if (report.kind === 'ready') member.isReady = true
    else if (report.kind === 'history') this.#history = report.happenings
    else {
      member.isAtWork = true
      this.#reports.push({ ...report, by: member.name })
      if (this.#printed.has(report.order)) this.#settings.lines.say(member.name, this.#sentence(report))
    }
    this.#conditions.look()
  }

  #sentence(report: Exclude<Report, { kind: 'ready' | 'history' }>): string {
    const { order } = report
    switch (report.kind) {
      case 'placed': {
        if (report.duplicate) return `${order} again: the receipt says duplicate`
        const { customer, item, total } = this.#placed.find(({ id }) => id === order)!
        return `${order} is placed: ${item} for ${customer}, ${total} EUR`
      }
      case 'declined':
        return `${order} declined, comes back in ${report.retryAfter}`
      case 'refused':
        return `${order} refused, ${report.reason}: a dead letter`
      case 'cancelled':
        return `${order} needs no reminder: cancelled`
      case 'done': {
        const { step, attempt, before } = report
        if (before) return `${order} came back, try ${attempt}: in the book as ${step}, not done again`
        if (step === 'reminded') return `${order} is not paid yet: a reminder goes out`
        return `${order} ${step}${attempt > 1 ? `, try ${attempt}` : ''}`
      }
    }
  }

  #order(customer: string, special: Partial<Order> = {}): Order {
    const number = ++this.#orders
    return {
      id: `order-${String(number).padStart(3, '0')}`,
      customer,
      item: ITEMS[number % ITEMS.length]!,
      total: 9 + ((number * 17) % 90),
      express: false,
      card: 'good',
      remindAfter: REMIND_LATE,
      ...special,
    }
  }

  /** Places the orders of customers. With `isPrinted`, each step of these orders is printed. */
  #place(orders: readonly Order[], isPrinted: boolean): void {
    for (const order of orders) {
      this.#placed.push(order)
      if (isPrinted) this.#printed.add(order.id)
    }
    this.#member('shop').process.send({ orders } satisfies Place)
  }

  #done(step: Step): (Done & { readonly by: string })[] {
    return this.#reports.filter(
      (report): report is Done & { readonly by: string } => report.kind === 'done' && report.step === step,
    )
  }

  #isMailed(orders: readonly Order[]): boolean {
    const mailed = new Set(this.#done('mailed').map(({ order }) => order))
    return orders.every(({ id }) => mailed.has(id))
  }

  /** Prints the length of the queue of payments until the condition is met. */
  async #watch(sluice: Sluice, condition: (info: QueueInfo) => boolean): Promise<void> {
    let isLong = true
    for (;;) {
      const info = await sluice.queues.get(Payments)
      const { ready, oldestReadyMs, consumers } = info
      this.#longest = Math.max(this.#longest, ready)
      const oldest = oldestReadyMs === null ? '' : `, oldest ${(oldestReadyMs / 1000).toFixed(1)} s`
      if (ready > 0 || isLong) {
        this.#settings.lines.say('payments', `${ready} ready${oldest}, ${consumers} workers`)
      }
      isLong = ready > 0
      if (condition(info)) return
      await pause(LOOK_MS)
    }
  }

  /** Polls the broker until the counts of the queue meet `condition`. Reports do not suffice: they precede acknowledgements. */
  async #settled(sluice: Sluice, condition: (info: QueueInfo) => boolean, queue = Payments): Promise<void> {
    while (!condition(await sluice.queues.get(queue))) await pause(POLL_MS)
  }
}

function isEmpty({ ready, leased, scheduled }: QueueInfo): boolean {
  return ready + leased + scheduled === 0
}
