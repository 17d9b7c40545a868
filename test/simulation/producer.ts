/**
 * A simulated producer: numbers its batches, keeps unanswered ones, and sends them again, byte for byte, on the next
 * connection. A hostile one also sends batches that must be refused.
 */
import {
  LIMITS,
  OP,
  decodePublishErr,
  decodePublishOk,
  recordBytes,
  type Duplicates,
  type ErrorCode,
  type Fault,
  type HelloOk,
} from '@sluice/protocol'
import { accepted, buildBatch, packBatch, remember, type Attempt, type RecordDraft } from './attempts.js'
import { recordOptionsFor } from './characters.js'
import { Client, type Surroundings } from './client.js'
import { Violation } from './trace.js'

interface Unanswered {
  readonly attempt: Attempt
  readonly payload: Uint8Array
  /**
   * Set when the batch was refused on this connection. Once every batch is answered, the refused batch is sent again,
   * either message by message or whole.
   */
  goesAgain: 'split' | 'whole' | undefined
}

/** Messages that are sent again under a new number. */
type Again = Pick<Attempt, 'queue' | 'records' | 'names' | 'options' | 'isSplit' | 'expects'> & {
  readonly atomic: boolean
}

// Refusals that concern the queue or the number, not a single message.
const ABOUT_THE_BATCH: ReadonlySet<string> = new Set(['QUEUE_NOT_FOUND', 'UNKNOWN_OUTCOME', 'NUMBER_REUSED'])
const ABOUT_ROOM: ReadonlySet<string> = new Set(['QUEUE_FULL', 'DEDUP_FULL'])

export class Producer extends Client {
  readonly isHostile: boolean
  readonly #window: number
  #number = 0
  #acceptedNumber = 0
  readonly #unanswered = new Map<number, Unanswered>()
  /** Refused messages, in the order of the calls; they are sent before new messages. */
  #resend: Again[] = []
  /** By queue: the unanswered batch that the next batch for the queue follows. */
  readonly #leaders = new Map<string, number>()
  /** Confirmed numbers, kept so that they can be reused. */
  readonly #confirmed: number[] = []
  /** Reused numbers on this connection whose refusal has not arrived yet. */
  readonly #reused = new Map<number, Attempt[]>()
  #reuses = 0

  constructor(name: string, around: Surroundings, isHostile: boolean) {
    super(name, around)
    this.isHostile = isHostile
    this.#window = around.chance.int(1, 24)
  }

  get isDone(): boolean {
    return this.#unanswered.size === 0 && this.#resend.length === 0
  }

  /** The lowest unanswered number; the next number if none is unanswered. */
  get lowestUnanswered(): number {
    for (const number of this.#unanswered.keys()) return number
    return this.#number + 1
  }

  /** The batches that the producer would send again to a new broker. */
  unanswered(): Attempt[] {
    return [...this.#unanswered.values()].map(({ attempt }) => attempt)
  }

  protected override get acceptedNumber(): number {
    return this.#acceptedNumber
  }

  protected override get inFlightBatchesMax(): number {
    return LIMITS.inFlightBatchesDefault
  }

  protected opened(_ok: HelloOk): void {
    for (const [number, sent] of this.#unanswered) {
      this.around.count('resent')
      if (sent.goesAgain !== undefined) this.around.count('refused sent again')
      sent.goesAgain = undefined
      this.#send(number, sent.payload)
    }
  }

  protected lost(): void {
    this.#reused.clear()
  }

  protected work(): void {
    const { chance, isHealing } = this.around
    const sent = [...this.#unanswered.values()]
    if (sent.some(({ goesAgain }) => goesAgain !== undefined)) {
      // Sends nothing new until every batch under way is answered.
      if (sent.every(({ goesAgain }) => goesAgain !== undefined)) this.#takeBack()
      return
    }
    const again = this.#resend[0]
    if (again !== undefined) {
      if (this.#unanswered.size >= this.#window) return
      this.#resend.shift()
      this.#sendAgain(again)
      return
    }
    if (isHealing || this.#unanswered.size >= this.#window) return
    if (this.isHostile && this.#confirmed.length > 0 && chance.hit(0.15)) this.#reuse()
    else if (this.isHostile && chance.hit(0.3)) this.#offend()
    else this.#publish()
  }

  #publish(): void {
    const { chance, queueNames } = this.around
    const kind = chance.random()
    // A few batches are large, so that a part of such a batch is settled long before the rest.
    const count = kind < 0.5 ? 1 : kind < 0.51 ? chance.int(40, 120) : chance.int(2, 12)
    const queue = chance.pick(queueNames)
    const number = ++this.#number
    const drafts = this.#drafts(number, count, queue)
    this.#attempt(queue, number, drafts, kind > 0.9, undefined)
  }

  /** Sends a batch that must be refused because of its content. */
  #offend(): void {
    const { chance, queueNames } = this.around
    const number = ++this.#number
    const drafts = this.#drafts(number, chance.int(1, 4))
    const kind = chance.int(0, 5)
    this.around.count(`offence ${kind}`)
    if (kind === 0) {
      this.#attempt('nowhere', number, drafts, false, ['QUEUE_NOT_FOUND'])
    } else if (kind === 1) {
      // The bad values are a delay of a hundred years and a day, a time far in the past, and a time to live of zero.
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
          // The count is one more than the number of messages.
          batch[12] = batch[12]! + 1
        },
      )
    } else if (kind === 4) {
      const draft = { name: this.#name(number, 0, 'x'), padding: this.around.messageBytesMax + 1 }
      this.#attempt(chance.pick(queueNames), number, [draft], false, ['MESSAGE_TOO_LARGE', 'QUEUE_NOT_FOUND'])
    } else {
      // Each message fits into a segment, but all of them together do not.
      const padding = this.around.messageBytesMax - 100
      const count = Math.ceil((this.around.batchBytesMax * 5) / padding)
      const many = Array.from({ length: count }, (_, i) => ({ name: this.#name(number, i, 'b'), padding }))
      this.#attempt(chance.pick(queueNames), number, many, false, ['BATCH_TOO_LARGE', 'QUEUE_NOT_FOUND'])
    }
  }

  /** Sends a confirmed number again, with other bytes. */
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
      follows: 0,
      isSplit: false,
      expects: ['NUMBER_REUSED'],
    }
    attempts.add(attempt)
    remember(attempt, this.name, this.around.history)
    const waiting = this.#reused.get(number)
    if (waiting === undefined) this.#reused.set(number, [attempt])
    else waiting.push(attempt)
    this.#send(number, payloadOf(queue, batch))
  }

  /** Collects the refused messages to send them again, in the order of their numbers, which is the order of the calls. */
  #takeBack(): void {
    const back: Again[] = []
    for (const { attempt, goesAgain } of this.#unanswered.values()) {
      const { queue, records, names, options, isSplit, expects } = attempt
      if (goesAgain === 'whole') {
        this.around.count('went again')
        back.push({ queue, records, names, options, isSplit, expects, atomic: attempt.batch[5] === 1 })
        continue
      }
      this.around.count('split')
      for (const [i, name] of names.entries()) {
        // Only the last message of the batch is invalid.
        const deserved = i === names.length - 1 ? expects : undefined
        back.push({
          queue,
          records: [records[i]!],
          names: [name],
          options: [options[i]],
          isSplit: false,
          expects: deserved,
          atomic: false,
        })
      }
    }
    this.#unanswered.clear()
    this.#resend = [...back, ...this.#resend]
  }

  #sendAgain({ atomic, ...again }: Again): void {
    const number = ++this.#number
    const follows = this.#follow(again.queue, number, again.isSplit)
    const batch = packBatch(number, again.records, atomic, follows)
    this.#sendNew({ ...again, identity: this.identityText, number, batch, follows }, true)
  }

  /** `number` minus the number of the batch that this batch follows; 0: it follows no batch. */
  #follow(queue: string, number: number, isSplit: boolean): number {
    const leader = this.#leaders.get(queue)
    const follows = leader !== undefined && this.#unanswered.has(leader) ? number - leader : 0
    if (isSplit || follows > 0) this.#leaders.set(queue, number)
    return follows
  }

  #sendNew(attempt: Attempt, isAgain: boolean): void {
    const { queue, number, batch } = attempt
    this.around.attempts.add(attempt, isAgain)
    if (!isAgain) remember(attempt, this.name, this.around.history)
    const payload = payloadOf(queue, batch)
    this.#unanswered.set(number, { attempt, payload, goesAgain: undefined })
    this.#send(number, payload)
  }

  #attempt(
    queue: string,
    number: number,
    drafts: readonly RecordDraft[],
    atomic: boolean,
    expects: readonly ErrorCode[] | undefined,
    spoil?: (batch: Uint8Array) => void,
  ): void {
    const { records } = buildBatch(number, drafts, atomic)
    const isAboutOne = expects === undefined || isTime(expects[0]!)
    const isSplit = !atomic && drafts.length > 1 && isAboutOne
    // A spoilt batch is sent again without the fault, so it must not be refused because of an earlier batch.
    const follows = isAboutOne ? this.#follow(queue, number, isSplit) : 0
    const batch = packBatch(number, records, atomic, follows)
    spoil?.(batch)
    const attempt: Attempt = {
      identity: this.identityText,
      number,
      queue,
      batch,
      records,
      names: drafts.map(({ name }) => name),
      options: drafts.map(({ options }) => options),
      follows,
      isSplit,
      expects,
    }
    this.#sendNew(attempt, false)
  }

  #send(number: number, payload: Uint8Array): void {
    this.send(OP.PUBLISH, 0, Math.max(0, number - this.lowestUnanswered), payload)
  }

  /** Drafts of messages; without `queue` the messages have no options. */
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
          : recordOptionsFor(this.around.characterOf(queue), chance, this.around.brokerMs)
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
      this.#refused(batchNumber, fault)
    } else {
      throw new Violation(21, `${this.name} receives unexpected frame ${opcode}`)
    }
  }

  #answered(number: number, base: number, duplicates: Duplicates | undefined): void {
    const unanswered = this.#unanswered.get(number)
    // Invariant 3: each number has one answer.
    if (unanswered === undefined)
      throw new Violation(3, `${this.name} receives a confirm of batch ${number}, which it does not wait for`)
    if (unanswered.attempt.expects !== undefined)
      throw new Violation(3, `${this.name} receives a confirm of its bad batch ${number}`)
    this.#unanswered.delete(number)
    this.#acceptedNumber = Math.max(this.#acceptedNumber, number)
    this.#confirmed.push(number)
    accepted(unanswered.attempt, base, duplicates, this.around.history)
  }

  #refused(number: number, { code, retryable }: Fault): void {
    this.around.count(`refused with ${code}`)
    const unanswered = this.#unanswered.get(number)
    const attempt = unanswered?.attempt ?? this.#reused.get(number)?.shift()
    if (attempt === undefined)
      throw new Violation(
        3,
        `${this.name} receives the refusal of batch ${number} with ${code}, which it does not wait for`,
      )
    if (unanswered !== undefined && code === 'UNKNOWN_OUTCOME')
      throw new Violation(3, `${this.name} waits for batch ${number} and receives ${code}`)
    if (unanswered !== undefined) {
      const isAboutOne = ABOUT_ROOM.has(code) || (!retryable && !ABOUT_THE_BATCH.has(code))
      if (code === 'EARLIER_REFUSED') unanswered.goesAgain = 'whole'
      else if (attempt.isSplit && isAboutOne) unanswered.goesAgain = 'split'
      if (unanswered.goesAgain !== undefined) return
    }
    this.#unanswered.delete(number)
    for (const message of attempt.names)
      this.around.history.push({ kind: 'outcome', message, outcome: 'fail' })
  }
}

/** Whether a message is refused because of one of its times. */
function isTime(code: ErrorCode): boolean {
  return code === 'INVALID_DELAY' || code === 'AT_IN_THE_PAST' || code === 'INVALID_TTL'
}

function payloadOf(queue: string, batch: Uint8Array): Uint8Array {
  const payload = new Uint8Array(1 + queue.length + batch.length)
  payload[0] = queue.length
  payload.set(Buffer.from(queue), 1)
  payload.set(batch, 1 + queue.length)
  return payload
}
