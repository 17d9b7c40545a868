/**
 * Kills a broker many times while groups with 1, 3 and 7 members consume a stream. The members join, leave and are killed
 * as well: each is a process of its own, and a killed one sends no GOODBYE. At the end the groups are drained, and the
 * histories of all clients are checked for each group.
 *
 * As a script: node test/dist/fault/group-kill.js [--kills 30] [--seed 1]
 */
import { connect } from '@sluice/client'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { checkHistory, findingLines, violations, type EndEvent, type Report } from '../checker/history.js'
import { numberOption, printComplaints } from './arguments.js'
import { KilledBroker, readyLine, unexpectedFailures, READY_MS_MAX, type Moment } from './killed-broker.js'
import { LoadProcess, added, readHistories } from './load.js'
import type { LoadArguments, TimedEvent } from './load-process.js'
import { Random } from './random.js'
import { scratchDirectory } from '../rig/scratch.js'
import { delay, until, withDeadline } from '../rig/wait.js'

export interface GroupKillOptions {
  readonly kills: number
  readonly seed: number
  /** Number of members of each group. */
  readonly members?: readonly number[]
  /** Mean time under load before a kill of the broker, and between two changes of members. */
  readonly meanLifeMs?: number
  readonly meanStayMs?: number
}

/** How members ended, and how many processes were members. */
interface Changes {
  joined: number
  left: number
  killed: number
}

interface GroupReport {
  readonly group: string
  readonly report: Report
  /** Messages that were delivered before an earlier message of their key was acknowledged. */
  readonly overtaken: readonly string[]
}

export interface GroupKillResult {
  readonly seed: number
  readonly kills: number
  readonly moments: Readonly<Record<Moment, number>>
  readonly groups: readonly GroupReport[]
  readonly changes: Readonly<Changes>
  readonly failures: Readonly<Record<string, number>>
  readonly readyMs: readonly number[]
  readonly startedMs: readonly number[]
  readonly tookMs: number
}

const STREAM = 'clicks'
const MEMBERS = [1, 3, 7]
const KEYS = 64
const REJOIN_MS_MAX = 300

/** The members of a group. Each place has one member or, between two members, none. */
class Group {
  readonly address: string
  readonly places: (LoadProcess | undefined)[]
  /** All processes that were members. */
  readonly all: LoadProcess[] = []
  readonly #memberOf: (name: string) => LoadProcess

  constructor(size: number, memberOf: (address: string, name: string) => LoadProcess) {
    this.address = `${STREAM}@of-${size}`
    this.places = Array.from({ length: size }, () => undefined)
    this.#memberOf = (name) => memberOf(this.address, name)
  }

  join(place: number): void {
    const member = this.#memberOf(`${this.address}-${place}-${this.all.length}`)
    this.all.push(member)
    this.places[place] = member
  }

  get settled(): number {
    return this.all.reduce((sum, { progress }) => sum + progress.settled, 0)
  }
}

/** Lets members leave, be killed and join, one change after the other and at least one, until `end` is called. */
class Churn {
  readonly changes: Changes = { joined: 0, left: 0, killed: 0 }
  readonly #groups: readonly Group[]
  readonly #random: Random
  readonly #meanStayMs: number
  readonly #leaving: Promise<unknown>[] = []
  #isEnding = false
  #ended: Promise<void> = Promise.resolve()

  constructor(groups: readonly Group[], random: Random, meanStayMs: number) {
    this.#groups = groups
    this.#random = random
    this.#meanStayMs = meanStayMs
  }

  begin(): void {
    for (const group of this.#groups) for (const place of group.places.keys()) this.#join(group, place)
    this.#ended = this.#run()
    // `end` reports the error.
    this.#ended.catch(() => undefined)
  }

  /** Resolves when each place has a member again, and those that left have ended. */
  async end(): Promise<void> {
    this.#isEnding = true
    await this.#ended
    await Promise.all(this.#leaving)
  }

  #join(group: Group, place: number): void {
    group.join(place)
    this.changes.joined++
  }

  async #run(): Promise<void> {
    const random = this.#random
    const places = this.#groups.flatMap((group) =>
      [...group.places.keys()].map((place) => ({ group, place })),
    )
    do {
      await delay(random.exponential(this.#meanStayMs))
      const { group, place } = places[random.below(places.length)]!
      const member = group.places[place]!
      if (member.exit !== undefined) throw new Error(`${group.address}: a member ended: ${member.stderr}`)
      group.places[place] = undefined
      if (random.below(2) === 0) {
        this.changes.killed++
        member.signal('SIGKILL')
      } else {
        this.changes.left++
        this.#leaving.push(withDeadline(member.stop(), `a member of ${group.address} to leave`, 60_000))
      }
      await delay(random.below(REJOIN_MS_MAX))
      this.#join(group, place)
    } while (!this.#isEnding)
  }
}

export async function killGroups(options: GroupKillOptions): Promise<GroupKillResult> {
  const { kills, seed, members = MEMBERS, meanLifeMs = 500, meanStayMs = 400 } = options
  const random = new Random(seed)
  const begunMs = performance.now()
  const scratch = await scratchDirectory('group-kill')
  const broker = await KilledBroker.start(
    { dataDir: join(scratch.path, 'data'), segmentBytes: 256 << 10, messageBytesMax: 32 << 10 },
    random,
    seed,
    meanLifeMs,
  )
  const seeds = new Random(seed + 1)
  const start = (own: Pick<LoadArguments, 'role' | 'name' | 'queues' | 'clients'>): LoadProcess =>
    new LoadProcess({
      ...own,
      url: broker.url,
      bodyBytesMax: 16 << 10,
      patienceMs: 1_500,
      rate: 300,
      keys: KEYS,
      otherSettles: 60,
      isKilled: own.role === 'consume',
      seed: seeds.below(1 << 30),
      history: join(scratch.path, `${own.name}.ndjson`),
    })
  const groups = members.map(
    (size) =>
      new Group(size, (address, name) => start({ role: 'consume', queues: [address], clients: [1], name })),
  )
  const churn = new Churn(groups, new Random(seed + 2), meanStayMs)
  let producers: LoadProcess | undefined
  try {
    await broker.ready()
    await prepare(
      broker.url,
      groups.map(({ address }) => address),
    )
    producers = start({ role: 'produce', queues: [STREAM], clients: [2], name: 'p' })
    churn.begin()
    const work = (): Promise<true> => progress(producers!, groups, seed)
    await work()
    for (let kill = 1; kill <= kills; kill++) await broker.kill(work)
    await broker.ready()
    await churn.end()
    await work()
    await withDeadline(producers.stop(), `the producers to end (seed ${seed})`, 60_000)
    const current = groups.flatMap(({ places }) => places.map((member) => member!))
    for (const member of current) member.drain()
    const ends = await drained(broker.url, groups)
    await withDeadline(
      Promise.all(current.map((member) => member.stop())),
      `the members to end (seed ${seed})`,
      60_000,
    )
    for (const load of [producers, ...current])
      if (load.exit?.code !== 0)
        throw new Error(`a load process ended with ${JSON.stringify(load.exit)}: ${load.stderr}`)
    const published = await readHistories([producers.history])
    const reports: GroupReport[] = []
    for (const [index, { address, all }] of groups.entries()) {
      const consumed = ofStream(await readHistories(all.map(({ history }) => history)))
      const events = [...published, ...consumed].toSorted((a, b) => a.atUs - b.atUs)
      reports.push({
        group: address,
        report: checkHistory([...events, ends[index]!]),
        overtaken: overtakings(events),
      })
    }
    return {
      seed,
      kills,
      moments: broker.moments,
      groups: reports,
      changes: churn.changes,
      failures: added([producers, ...groups.flatMap(({ all }) => all)].map((load) => load.progress.failures)),
      readyMs: broker.readyMs,
      startedMs: broker.startedMs,
      tookMs: performance.now() - begunMs,
    }
  } finally {
    await Promise.allSettled([churn.end()])
    const processes = [...(producers === undefined ? [] : [producers]), ...groups.flatMap(({ all }) => all)]
    await Promise.all([broker, ...processes].map((process) => process.dispose()))
    await scratch.dispose()
  }
}

async function prepare(url: string, addresses: readonly string[]): Promise<void> {
  const admin = await connect(url)
  await admin.streams.ensure(STREAM)
  const options = { maxDeliveries: 'unlimited', retry: { initial: 20, max: 100 } } as const
  for (const address of addresses) await admin.groups.ensure(address, options)
  await admin.close()
}

/** Waits until more is published, and each group has acknowledged more. */
function progress(producers: LoadProcess, groups: readonly Group[], seed: number): Promise<true> {
  const { confirmed } = producers.progress
  const settled = groups.map((group) => group.settled)
  return until(
    `all groups to continue (seed ${seed})`,
    () => {
      if (producers.exit !== undefined) throw new Error(`the producers ended: ${producers.stderr}`)
      const moves = groups.every((group, index) => group.settled > settled[index]!)
      return moves && producers.progress.confirmed > confirmed
    },
    READY_MS_MAX,
  )
}

/** Waits until the groups have finished all messages, or the time is over, and reports what is left of each. */
async function drained(url: string, groups: readonly Group[]): Promise<EndEvent[]> {
  const admin = await connect(url)
  try {
    const ends = (): Promise<EndEvent[]> =>
      Promise.all(
        groups.map(async ({ address }): Promise<EndEvent> => {
          const { lag, missed, dead } = await admin.groups.get(address)
          return { kind: 'end', queue: STREAM, left: lag + missed, dead }
        }),
      )
    const isDrained = async (): Promise<boolean> => (await ends()).every(({ left }) => left === 0)
    await until('the groups to be drained', isDrained, 60_000).catch(() => undefined)
    return await ends()
  } finally {
    await admin.close()
  }
}

/**
 * The events of a group as if its stream were a queue of its own. The record that a settle was sent is left out if its
 * outcome follows.
 */
function ofStream(events: readonly TimedEvent[]): TimedEvent[] {
  const found: (TimedEvent | undefined)[] = []
  const sent = new Map<string, number>()
  for (const event of events) {
    if (event.kind === 'settle') {
      const name = `${event.consumer} ${event.message}`
      const before = sent.get(name)
      if (before === undefined) sent.set(name, found.length)
      else {
        found[before] = undefined
        sent.delete(name)
      }
    }
    found.push('queue' in event ? { ...event, queue: STREAM } : event)
  }
  return found.filter((event) => event !== undefined)
}

/**
 * Finds messages that were delivered before an earlier message of their key was acknowledged. A member records an ack before
 * it sends it, and a delivery after it has arrived. So if the recorded times are in the wrong order, the broker
 * delivered too early.
 */
function overtakings(events: readonly TimedEvent[]): string[] {
  const lanes = new Map<string, string>()
  const offsets = new Map<string, number>()
  const ackedUs = new Map<string, number>()
  for (const event of events) {
    if (event.kind === 'attempt') lanes.set(event.message, event.lane!)
    else if (event.kind === 'deliver') offsets.set(event.message, event.offset!)
    else if (event.kind === 'settle' && event.action === 'ack' && event.outcome !== 'fail') {
      const atUs = event.sentUs ?? event.atUs
      ackedUs.set(event.message, Math.min(atUs, ackedUs.get(event.message) ?? Infinity))
    }
  }
  /** The delivered messages of each key, in the order of the stream. */
  const lines = new Map<string, string[]>()
  for (const [message] of [...offsets].toSorted((a, b) => a[1] - b[1])) {
    const lane = lanes.get(message)!
    lines.set(lane, [...(lines.get(lane) ?? []), message])
  }
  const before = new Map<string, string>()
  for (const line of lines.values())
    line.forEach((message, index) => index > 0 && before.set(message, line[index - 1]!))
  const found: string[] = []
  for (const event of events) {
    if (event.kind !== 'deliver') continue
    const earlier = before.get(event.message)
    if (earlier === undefined || (ackedUs.get(earlier) ?? Infinity) <= event.atUs) continue
    found.push(`${event.message} was delivered to ${event.consumer} before ${earlier} was acknowledged`)
  }
  return found
}

/** The problems as text for a failure message; empty without problems. */
export function complaints({ groups, failures, seed, kills }: GroupKillResult): string {
  const lines: string[] = []
  for (const { group, report, overtaken } of groups) {
    const found = [findingLines(violations(report)), ...overtaken.slice(0, 10)].filter((line) => line !== '')
    if (found.length > 0) lines.push(`${group}:`, ...found)
  }
  const unexpected = unexpectedFailures(failures)
  if (unexpected.length > 0)
    lines.push(`clients received ${unexpected.join(', ')}: ${JSON.stringify(failures)}`)
  if (lines.length > 0)
    lines.push(`repeat with: node test/dist/fault/group-kill.js --kills ${kills} --seed ${seed}`)
  return lines.join('\n')
}

export function summary(result: GroupKillResult): string {
  const { kills, seed, moments, changes, groups, failures, tookMs } = result
  const [first] = groups
  return [
    `${kills} kills of the broker (${moments.load} under load, ${moments.start} just started, ${moments.recovery} recovering), seed ${seed}`,
    `${changes.joined} members joined, ${changes.left} left, ${changes.killed} were killed`,
    `${first?.report.attempted} published: ${first?.report.confirmed} confirmed, ${first?.report.refused} refused, ${first?.report.unknown} unknown`,
    ...groups.map(({ group, report: { deliveries, delivered, counts }, overtaken }) =>
      [
        `${group}: ${deliveries} deliveries of ${delivered} messages; lost ${counts.lost}, stuck ${counts.stuck}`,
        `unmarked duplicates ${counts.duplicated}, unexpected ${counts.unexpected}, reordered ${counts.reordered}`,
        `keys overtaken ${overtaken.length}, recovered ${counts.recovered}`,
      ].join(', '),
    ),
    `errors that clients received: ${JSON.stringify(failures)}`,
    `${readyLine([result])}; ${Math.round(tookMs / 1000)} s`,
  ].join('\n')
}

async function main(args: readonly string[]): Promise<void> {
  const result = await killGroups({
    kills: numberOption(args, 'kills', 30),
    seed: numberOption(args, 'seed', Date.now() % 1_000_000),
  })
  printComplaints(complaints(result))
  console.log(summary(result))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2))
