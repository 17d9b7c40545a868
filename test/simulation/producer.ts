/**
 * A simulated producer: numbers its batches, keeps what is unanswered, and sends it again, byte for byte, on the next
 * connection. A hostile one also sends what must be refused.
 */
import {
  LIMITS,
  OP,
  decodePublishErr,
  decodePublishOk,
  recordBytes,
  type Duplicates,
  type ErrorCode,
  type HelloOk,
} from '@sluice/protocol'
import { accepted, buildBatch, remember, type Attempt, type RecordDraft } from './attempts.js'
import { wishFor } from './characters.js'
import { Client, type Surroundings } from './client.js'
import { Violation } from './trace.js'

interface Unanswered {
  readonly attempt: Attempt
  readonly payload: Uint8Array
}

export class Producer extends Client {
  readonly isHostile: boolean
  readonly #window: number
  #number = 0
  #acceptedNumber = 0
  readonly #unanswered = new Map<number, Unanswered>()
  /** Numbers that were confirmed, for one who reuses them. */
  readonly #confirmed: number[] = []
  /** On this connection: reused numbers whose refusal is to come. */
  readonly #reused = new Map<number, Attempt[]>()
  #reuses = 0

  constructor(name: string, around: Surroundings, isHostile: boolean) {
    super(name, around)
    this.isHostile = isHostile
    this.#window = around.chance.int(1, 24)
  }

  get isDone(): boolean {
    return this.#unanswered.size === 0
  }

  /** The lowest number that it may still send again. */
  get lowestUnanswered(): number {
    for (const number of this.#unanswered.keys()) return number
    return this.#number + 1
  }

  /** What a broker would be sent again. */
  unanswered(): Attempt[] {
    return [...this.#unanswered.values()].map(({ attempt }) => attempt)
  }

  protected override get acceptedNumber(): number {
    return this.#acceptedNumber
  }

  protected override get inFlightBatches(): number {
    return LIMITS.inFlightBatchesDefault
  }

  protected opened(_ok: HelloOk): void {
    for (const [number, { payload }] of this.#unanswered) {
      this.around.count('resent')
      this.#send(number, payload)
    }
  }

  protected lost(): void {
    this.#reused.clear()
  }

  protected work(): void {
    const { chance, isHealing } = this.around
    if (isHealing || this.#unanswered.size >= this.#window) return
    if (this.isHostile && this.#confirmed.length > 0 && chance.hit(0.15)) this.#reuse()
    else if (this.isHostile && chance.hit(0.3)) this.#offend()
    else this.#publish()
  }

  #publish(): void {
    const { chance, queueNames } = this.around
    const kind = chance.random()
    // Few are large: of those a part is settled long before the rest.
    const count = kind < 0.5 ? 1 : kind < 0.51 ? chance.int(40, 120) : chance.int(2, 12)
    const queue = chance.pick(queueNames)
    const number = ++this.#number
    const drafts = this.#drafts(number, count, queue)
    this.#attempt(queue, number, drafts, kind > 0.9, undefined)
  }

  /** Something that is refused for what it is. */
  #offend(): void {
    const { chance, queueNames } = this.around
    const number = ++this.#number
    const drafts = this.#drafts(number, chance.int(1, 4))
    const kind = chance.int(0, 5)
    this.around.count(`offence ${kind}`)
    if (kind === 0) {
      this.#attempt('nowhere', number, drafts, false, ['QUEUE_NOT_FOUND'])
    } else if (kind === 1) {
      // A hundred years and a day; a time long past; no time to live at all.
      const [options, code] = chance.pick([
        [{ delayMs: LIMITS.delayMsMax + 1 }, 'INVALID_DELAY'],
        [{ atMs: 7 }, 'AT_IN_THE_PAST'],
        [{ ttlMs: 0 }, 'INVALID_TTL'],
      ] as const)
      const draft = { ...drafts[0]!, options }
      this.#attempt(chance.pick(queueNames), number, [...drafts.slice(1), draft], false, [
        code,
        'QUEUE_NOT_FOUND',
      ])
    } else if (kind === 2) {
      this.#attempt(chance.pick(queueNames), number, drafts, false, ['BATCH_CORRUPT'], (batch) => {
        batch[batch.length - 1] = batch[batch.length - 1]! ^ 1
      })
    } else if (kind === 3) {
      this.#attempt(
        chance.pick(queueNames),
        number,
        drafts,
        false,
        ['BATCH_MALFORMED', 'QUEUE_NOT_FOUND'],
        (batch) => {
          // One message more than there is.
          batch[12] = batch[12]! + 1
        },
      )
    } else if (kind === 4) {
      const draft = { name: this.#name(number, 0, 'x'), padding: this.around.messageBytesMax + 1 }
      this.#attempt(chance.pick(queueNames), number, [draft], false, ['MESSAGE_TOO_LARGE', 'QUEUE_NOT_FOUND'])
    } else {
      // Each message fits, and all of them together fit no segment.
      const padding = this.around.messageBytesMax - 100
      const count = Math.ceil((this.around.batchBytesMax * 5) / padding)
      const many = Array.from({ length: count }, (_, i) => ({ name: this.#name(number, i, 'b'), padding }))
      this.#attempt(chance.pick(queueNames), number, many, false, ['BATCH_TOO_LARGE', 'QUEUE_NOT_FOUND'])
    }
  }

  /** A number that was confirmed, with other bytes. */
  #reuse(): void {
    const { chance, queueNames, attempts } = this.around
    const number = chance.pick(this.#confirmed.slice(-30))
    this.around.count('number reused')
    const { batch, records } = buildBatch(
      number,
      [{ name: this.#name(number, 0, `r${++this.#reuses}`), padding: 3 }],
      false,
    )
    const queue = chance.pick(queueNames)
    const attempt: Attempt = {
      identity: this.identityText,
      number,
      queue,
      batch,
      records,
      names: [this.#name(number, 0, `r${this.#reuses}`)],
      options: [undefined],
      expects: ['NUMBER_REUSED'],
    }
    attempts.add(attempt)
    remember(attempt, this.name, this.around.history)
    const waiting = this.#reused.get(number)
    if (waiting === undefined) this.#reused.set(number, [attempt])
    else waiting.push(attempt)
    this.#send(number, payloadOf(queue, batch))
  }

  #attempt(
    queue: string,
    number: number,
    drafts: readonly RecordDraft[],
    atomic: boolean,
    expects: readonly ErrorCode[] | undefined,
    spoil?: (batch: Uint8Array) => void,
  ): void {
    const { batch, records } = buildBatch(number, drafts, atomic)
    spoil?.(batch)
    const attempt: Attempt = {
      identity: this.identityText,
      number,
      queue,
      batch,
      records,
      names: drafts.map(({ name }) => name),
      options: drafts.map(({ options }) => options),
      expects,
    }
    this.around.attempts.add(attempt)
    remember(attempt, this.name, this.around.history)
    const payload = payloadOf(queue, batch)
    this.#unanswered.set(number, { attempt, payload })
    this.#send(number, payload)
  }

  #send(number: number, payload: Uint8Array): void {
    this.send(OP.PUBLISH, 0, Math.max(0, number - this.lowestUnanswered), payload)
  }

  /** Without a queue, nothing is asked of them. */
  #drafts(number: number, count: number, queue?: string): RecordDraft[] {
    const { chance, messageBytesMax, batchBytesMax } = this.around
    const drafts: RecordDraft[] = []
    let left = batchBytesMax
    for (let i = 0; i < count; i++) {
      const name = this.#name(number, i, 'm')
      const most = Math.min(messageBytesMax, left) - 120
      if (most < 0) break
      const padding = chance.hit(0.05) ? most : Math.min(most, chance.skewed(600))
      const options =
        queue === undefined
          ? undefined
          : wishFor(this.around.characterOf(queue), chance, this.around.brokerMs)
      drafts.push({ name, padding, ...(options === undefined ? {} : { options }) })
      left -= padding + 60 + (options === undefined ? 0 : recordBytes(options, 0))
    }
    return drafts
  }

  #name(number: number, index: number, kind: string): string {
    return `${this.name}:${number}:${index}:${kind}`
  }

  protected frame(
    opcode: number,
    _channel: number,
    _correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    if (opcode === OP.PUBLISH_OK) {
      decodePublishOk(bytes, start, end, (number, base, duplicates) =>
        this.#answered(number, base, duplicates),
      )
    } else if (opcode === OP.PUBLISH_ERR) {
      const { batchNumber, fault } = decodePublishErr(bytes, start, end)
      this.#refused(batchNumber, fault.code)
    } else {
      throw new Violation(21, `${this.name} is sent frame ${opcode}`)
    }
  }

  #answered(number: number, base: number, duplicates: Duplicates | undefined): void {
    const unanswered = this.#unanswered.get(number)
    // 3: one answer for each number.
    if (unanswered === undefined)
      throw new Violation(
        3,
        `${this.name} is told that batch ${number} is accepted, and does not wait for it`,
      )
    if (unanswered.attempt.expects !== undefined)
      throw new Violation(3, `${this.name} is told that its bad batch ${number} is accepted`)
    this.#unanswered.delete(number)
    this.#acceptedNumber = Math.max(this.#acceptedNumber, number)
    this.#confirmed.push(number)
    accepted(unanswered.attempt, base, duplicates, this.around.history)
  }

  #refused(number: number, code: ErrorCode): void {
    this.around.count(`refused with ${code}`)
    const unanswered = this.#unanswered.get(number)
    const attempt = unanswered?.attempt ?? this.#reused.get(number)?.shift()
    if (attempt === undefined)
      throw new Violation(
        3,
        `${this.name} is told that batch ${number} is refused with ${code}, and does not wait for it`,
      )
    if (unanswered !== undefined && code === 'UNKNOWN_OUTCOME')
      throw new Violation(3, `${this.name} waits for batch ${number} and is told ${code}`)
    this.#unanswered.delete(number)
    for (const message of attempt.names)
      this.around.history.push({ kind: 'outcome', message, outcome: 'fail' })
  }
}

function payloadOf(queue: string, batch: Uint8Array): Uint8Array {
  const payload = new Uint8Array(1 + queue.length + batch.length)
  payload[0] = queue.length
  payload.set(Buffer.from(queue), 1)
  payload.set(batch, 1 + queue.length)
  return payload
}
