/**
 * A simulated administrator: creates, changes, pauses, purges, deletes and inspects queues, redrives or discards dead
 * messages, cancels and reschedules messages, and closes consumers.
 */
import {
  OP,
  decodeControl,
  encodeControl,
  type Body,
  type ConsumerInfo,
  type HelloOk,
  type QueueInfo,
} from '@sluice/protocol'
import { idFor, optionsFor } from './characters.js'
import { Client } from './client.js'
import { Violation } from './trace.js'

interface Asked {
  readonly opcode: number
  readonly name: string
}

export class Administrator extends Client {
  readonly #waiting = new Map<number, Asked>()
  /** Queues that the administrator believes to exist, and the subset that it believes to be running. */
  readonly #made = new Set<string>()
  readonly #running = new Set<string>()
  /** The next offset of each queue, and all consumers, when the administrator last asked the broker. */
  readonly #published = new Map<string, number>()
  #consumers: readonly ConsumerInfo[] = []
  #knowsAll = false

  get isDone(): boolean {
    return this.#waiting.size === 0 && this.around.queueNames.every((name) => this.#running.has(name))
  }

  protected opened(_ok: HelloOk): void {}

  protected lost(): void {
    this.#waiting.clear()
  }

  protected work(): void {
    const { chance, queueNames, isHealing } = this.around
    if (isHealing) {
      if (this.#waiting.size > 0) return
      // A frame that arrived late can have paused a queue in the meantime.
      if (!this.#knowsAll || chance.hit(0.02)) {
        this.#knowsAll = true
        this.#ask(OP.LIST, {})
        return
      }
      const missing = queueNames.find((name) => !this.#made.has(name))
      const paused = queueNames.find((name) => !this.#running.has(name))
      if (missing !== undefined)
        this.#ask(OP.ENSURE, { name: missing, options: this.around.characterOf(missing).fixed })
      else if (paused !== undefined) this.#ask(OP.RESUME, { name: paused })
      return
    }
    const missing = queueNames.find((one) => !this.#made.has(one))
    const name = missing !== undefined && chance.hit(0.6) ? missing : chance.pick(queueNames)
    const character = this.around.characterOf(name)
    const kind = name === missing ? 0 : chance.random()
    if (kind < 0.35) {
      const options = optionsFor(character, chance)
      this.#ask(OP.ENSURE, { name, options, update: chance.hit(0.7) })
    } else if (kind < 0.36) {
      this.#made.delete(name)
      this.#ask(OP.DELETE, { name })
    } else if (kind < 0.375) {
      this.#ask(OP.PURGE, { name })
    } else if (kind < 0.75 && !character.isPlain) {
      this.#meddle(name)
    } else if (kind < 0.92) {
      this.#ask(OP.GET, { name })
    } else {
      this.#ask(OP.LIST, {})
    }
  }

  #meddle(name: string): void {
    const { chance, queueNames } = this.around
    const kind = chance.random()
    const limit = chance.int(1, 20)
    const dead = {
      name,
      limit,
      ...(chance.hit(0.3) ? { from: this.#someOffset(name) } : {}),
      ...(chance.hit(0.2) ? { offsets: [this.#someOffset(name), this.#someOffset(name)] } : {}),
      ...(chance.hit(0.2)
        ? { filter: chance.pick([{ reason: 'rejected' }, { key: 'k1' }, { minAttempts: 2 }]) }
        : {}),
      ...(chance.hit(0.1) ? { dryRun: true } : {}),
    }
    if (kind < 0.1) this.#ask(OP.PAUSE, { name })
    else if (kind < 0.27) this.#ask(OP.RESUME, { name })
    else if (kind < 0.45) {
      const to = chance.hit(0.3) ? chance.pick(queueNames) : undefined
      this.#ask(OP.REDRIVE, { ...dead, ...(to === undefined ? {} : { to }), force: chance.hit(0.1) })
    } else if (kind < 0.5) this.#ask(OP.DISCARD, dead)
    else if (kind < 0.65) this.#ask(OP.CANCEL, { name, ...this.#reference(name) })
    else if (kind < 0.8) {
      const at = chance.hit(0.6)
        ? { delayMs: chance.skewed(2_000) }
        : { atMs: this.around.brokerMs + chance.pick([-100_000, -200, 500]) }
      this.#ask(OP.RESCHEDULE, { name, ...this.#reference(name), ...at })
    } else if (kind < 0.9) {
      const state = chance.pick([undefined, 'ready', 'scheduled', 'leased', 'dead'])
      this.#ask(OP.PEEK, {
        name,
        limit,
        from: this.#someOffset(name),
        ...(state === undefined ? {} : { state }),
      })
    } else if (kind < 0.93) this.#ask(OP.HISTORY, { name, offset: this.#someOffset(name) })
    else if (kind < 0.98) this.#ask(OP.CONSUMERS, { name })
    else if (this.#consumers.length > 0)
      this.#ask(OP.CLOSE_CONSUMER, { name, id: chance.pick(this.#consumers).id })
  }

  #reference(name: string): { readonly offset: number } | { readonly id: string } {
    const { chance } = this.around
    return chance.hit(0.6) ? { offset: this.#someOffset(name) } : { id: idFor(chance) }
  }

  // Chooses one of the newest offsets in most cases.
  #someOffset(name: string): number {
    const next = this.#published.get(name) ?? 0
    return Math.max(0, next - this.around.chance.skewed(60))
  }

  #ask(opcode: number, body: Body): void {
    const correlation = this.nextCorrelation()
    const name = typeof body['name'] === 'string' ? body['name'] : ''
    if (opcode === OP.PAUSE || opcode === OP.DELETE) this.#running.delete(name)
    this.#waiting.set(correlation, { opcode, name })
    if (opcode === OP.PEEK) this.conversation?.peeks.set(correlation, name)
    this.around.count(`asked ${opcode}`)
    this.send(opcode, 0, correlation, encodeControl(body))
  }

  protected frame(
    opcode: number,
    _channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    if (opcode !== OP.RESULT && opcode !== OP.ERROR && opcode !== OP.MESSAGES)
      throw new Violation(21, `${this.name} receives unexpected frame ${opcode}`)
    const asked = this.#waiting.get(correlation)
    if (asked === undefined)
      throw new Violation(21, `${this.name} receives an answer to request ${correlation}, which is not open`)
    this.#waiting.delete(correlation)
    if ((opcode === OP.MESSAGES) !== (asked.opcode === OP.PEEK) && opcode !== OP.ERROR)
      throw new Violation(21, `request ${asked.opcode} is answered with frame ${opcode}`)
    // The queue was deleted, or does not exist yet.
    if (opcode === OP.ERROR && asked.opcode === OP.RESUME) this.#made.delete(asked.name)
    if (opcode !== OP.RESULT) return
    this.#answered(asked, decodeControl(bytes, start, end))
  }

  #answered({ opcode, name }: Asked, body: Body): void {
    if (opcode === OP.ENSURE || opcode === OP.GET) {
      const queue = body['queue'] as QueueInfo
      this.#published.set(name, queue.published)
      if (opcode === OP.ENSURE) this.#made.add(name)
    } else if (opcode === OP.RESUME) {
      this.#running.add(name)
    } else if (opcode === OP.LIST) {
      for (const queue of body['queues'] as QueueInfo[]) if (queue.paused) this.#running.delete(queue.name)
    } else if (opcode === OP.CONSUMERS) {
      this.#consumers = body['consumers'] as ConsumerInfo[]
    }
  }
}
