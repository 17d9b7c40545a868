/**
 * Producers and the results of their recent batches: a batch that is sent again gets the same answer and is not
 * accepted again (invariant 3). Accepted numbers are recorded in the log; refused ones are remembered until the broker
 * stops.
 *
 * Each batch gives the distance from its number down to the lowest unanswered number. Older results are forgotten, so a
 * window covers only the batches in flight.
 */
import {
  SluiceError,
  readText,
  readU32,
  readU64,
  textBytes,
  writeText,
  writeU32,
  writeU64,
  type Duplicates,
  type Fault,
  type Placed,
} from '@sluice/protocol'
import { PRODUCER_NUMBER_BYTES, type EntryLimits } from '../log/entry-limits.js'
import { NOT_WRITTEN } from '../queue/index.js'

const IDENTITY_BYTES = 16
/** Capacity of a window when its first result arrives; a power of two. */
const RESULTS_FIRST = 16
/**
 * Arrays shared by all producers without results; separate arrays would take 1 KB for each of 100,000 idle producers.
 */
const NO_NUMBERS = new Float64Array(0)
const NO_CRCS = new Uint32Array(0)
const PAGE_HEAD_BYTES = IDENTITY_BYTES + 4 + 4 + 8 + 8 + 8
/** Maximum size of one remembered duplicate or batch place in a page, in bytes. */
const PLACE_BYTES = 40

type ProducerLimits = Pick<EntryLimits, 'resultsBytesMax' | 'producerNumbersMax'>

export class Producer {
  /** Id in the log; 0 until the first batch is accepted. */
  id: number
  /** 16 bytes in hexadecimal. */
  readonly identity: string
  /** Highest accepted number; 0 until a batch is accepted. */
  highest = 0
  lastUsedMs = 0
  /** Number of open connections of this producer. */
  connections = 0
  dirty = true
  pagePosition = NOT_WRITTEN
  /** Results of numbers below this are forgotten. */
  windowStart = 1
  #numbers: Float64Array = NO_NUMBERS
  #bases: Float64Array = NO_NUMBERS
  #crcs: Uint32Array = NO_CRCS
  #refused: Map<number, Fault> | undefined
  /** Results that have more than a base offset: the results of batches with duplicates and of atomic steps. */
  readonly #places = new Map<number, readonly Placed[]>()

  readonly #limits: ProducerLimits
  /** Number of remembered duplicates and places. */
  #remembered = 0

  /** `limits` bounds the producer's state page. Beyond the limits the oldest results are forgotten early. */
  constructor(id: number, identity: string, limits: ProducerLimits) {
    this.id = id
    this.identity = identity
    this.#limits = limits
  }

  /**
   * Returns the result of `number`; undefined if the number is new. `unanswered`: the distance from
   * `number` down to the lowest number that still awaits an answer.
   * @throws SluiceError NUMBER_REUSED, UNKNOWN_OUTCOME, or the refusal
   */
  resultOf(number: number, crc: number, unanswered: number): readonly Placed[] | undefined {
    this.forgetBelow(number - unanswered)
    if (number < this.windowStart) throw forgotten(number, this.windowStart)
    const slot = number & (this.#numbers.length - 1)
    if (this.#numbers[slot] === number) {
      if (this.#crcs[slot] !== crc) throw reused(number)
      return this.#places.get(number) ?? [{ baseOffset: this.#bases[slot]!, duplicates: undefined }]
    }
    const refusal = this.#refused?.get(number)
    if (refusal?.retryable === false) throw new SluiceError(refusal.code, refusal.message, refusal)
    return undefined
  }

  /** Forgets the results of numbers below `number`, whose answers the producer has received. */
  forgetBelow(number: number): void {
    if (number <= this.windowStart) return
    this.windowStart = number
    for (const [earlier, places] of this.#places) if (earlier < number) this.#forgetPlaces(earlier, places)
    if (this.#refused !== undefined) forgetKeysBelow(this.#refused, number)
  }

  /** Forgets all results: the producer will send none of its numbers again. */
  forgetAll(): void {
    this.forgetBelow(this.highest + 1)
    this.#refused = undefined
    this.dirty = true
  }

  /** Remembers the result of an accepted atomic step. */
  answer(number: number, crc: number, places: readonly Placed[]): void {
    this.accept(number, 0, crc)
    this.#remember(number, places)
  }

  #remember(number: number, places: readonly Placed[]): void {
    this.#places.set(number, places)
    this.#remembered += sizeOf(places)
    // Beyond this limit the oldest results are dropped; a batch that is sent again after its result was dropped gets
    // UNKNOWN_OUTCOME.
    for (const oldest of this.#places.keys()) {
      if (this.#remembered * PLACE_BYTES <= this.#limits.resultsBytesMax || oldest === number) break
      this.forgetBelow(oldest + 1)
    }
  }

  #forgetPlaces(number: number, places: readonly Placed[]): void {
    this.#places.delete(number)
    this.#remembered -= sizeOf(places)
  }

  accept(number: number, base: number, crc: number, duplicates?: Duplicates): void {
    if (number > this.highest) this.highest = number
    while (number - this.windowStart >= this.#numbers.length) {
      const { producerNumbersMax } = this.#limits
      if (this.#numbers.length >= producerNumbersMax) {
        this.forgetBelow(number - producerNumbersMax + 1)
      } else {
        this.#resize(Math.max(RESULTS_FIRST, this.#numbers.length * 2))
      }
    }
    const slot = number & (this.#numbers.length - 1)
    this.#numbers[slot] = number
    this.#bases[slot] = base
    this.#crcs[slot] = crc
    if (duplicates !== undefined) this.#remember(number, [{ baseOffset: base, duplicates }])
    this.#refused?.delete(number)
    this.dirty = true
  }

  /**
   * Remembers the refusal of `number`. If the refusal is retryable, a batch that is sent again is checked again, but
   * batches that follow the refused one are refused.
   */
  refuse(number: number, fault: Fault): void {
    this.#refused ??= new Map()
    this.#refused.set(number, fault)
  }

  /** Whether `number`, which is unanswered, was refused. */
  wasRefused(number: number): boolean {
    return this.#refused?.has(number) === true
  }

  /** Bytes of the arrays of results. */
  get windowBytes(): number {
    return this.#numbers.byteLength + this.#bases.byteLength + this.#crcs.byteLength
  }

  /** Called when the producer disconnects. Shrinks the arrays to the remembered results. */
  shrink(): void {
    let size = this.highest < this.windowStart ? 0 : RESULTS_FIRST
    while (size > 0 && size <= this.highest - this.windowStart) size *= 2
    if (size < this.#numbers.length) this.#resize(size)
  }

  #resize(size: number): void {
    const [numbers, bases, crcs] = [this.#numbers, this.#bases, this.#crcs]
    this.#numbers = size === 0 ? NO_NUMBERS : new Float64Array(size)
    this.#bases = size === 0 ? NO_NUMBERS : new Float64Array(size)
    this.#crcs = size === 0 ? NO_CRCS : new Uint32Array(size)
    for (const [slot, number] of numbers.entries()) {
      if (number < this.windowStart) continue
      const to = number & (size - 1)
      this.#numbers[to] = number
      this.#bases[to] = bases[slot]!
      this.#crcs[to] = crcs[slot]!
    }
  }

  /**
   * State page: 16 B identity · u32 id · u32 count · u64 highest · u64 window start · u64 last used, ms ·
   * items of u64 number, u64 base offset, u32 CRC · results of batches with duplicates and of atomic steps, as JSON
   * text: pairs of number and places.
   */
  encodePage(): Uint8Array {
    const slots: number[] = []
    for (let slot = 0; slot < this.#numbers.length; slot++) {
      if (this.#numbers[slot]! >= this.windowStart) slots.push(slot)
    }
    const places = JSON.stringify([...this.#places].map(([number, places]) => [number, toPlain(places)]))
    const itemsEnd = PAGE_HEAD_BYTES + slots.length * PRODUCER_NUMBER_BYTES
    const bytes = new Uint8Array(itemsEnd + textBytes(places))
    writeText(bytes, itemsEnd, places)
    bytes.set(Buffer.from(this.identity, 'hex'))
    writeU32(bytes, 16, this.id)
    writeU32(bytes, 20, slots.length)
    writeU64(bytes, 24, this.highest)
    writeU64(bytes, 32, this.windowStart)
    writeU64(bytes, 40, this.lastUsedMs)
    let at = PAGE_HEAD_BYTES
    for (const slot of slots) {
      writeU64(bytes, at, this.#numbers[slot]!)
      writeU64(bytes, at + 8, this.#bases[slot]!)
      writeU32(bytes, at + 16, this.#crcs[slot]!)
      at += PRODUCER_NUMBER_BYTES
    }
    return bytes
  }

  static decodePage(bytes: Uint8Array, start: number, end: number, limits: ProducerLimits): Producer {
    const identity = Buffer.from(bytes.subarray(start, start + IDENTITY_BYTES)).toString('hex')
    const producer = new Producer(readU32(bytes, start + 16), identity, limits)
    const count = readU32(bytes, start + 20)
    producer.windowStart = readU64(bytes, start + 32)
    let at = start + PAGE_HEAD_BYTES
    for (let i = 0; i < count; i++, at += PRODUCER_NUMBER_BYTES) {
      producer.accept(readU64(bytes, at), readU64(bytes, at + 8), readU32(bytes, at + 16))
    }
    for (const [number, places] of JSON.parse(readText(bytes, at, end)) as [number, PlainPlace[]][])
      producer.#remember(number, fromPlain(places))
    producer.highest = readU64(bytes, start + 24)
    producer.lastUsedMs = readU64(bytes, start + 40)
    producer.dirty = false
    return producer
  }
}

function sizeOf(places: readonly Placed[]): number {
  let size = places.length
  for (const { duplicates } of places) size += duplicates?.size ?? 0
  return size
}

/** Base offset, then the index and first offset of each duplicate. */
type PlainPlace = [number, ...[number, number][]]

function toPlain(places: readonly Placed[]): PlainPlace[] {
  return places.map(({ baseOffset, duplicates }) => [baseOffset, ...(duplicates ?? [])])
}

function fromPlain(places: readonly PlainPlace[]): Placed[] {
  return places.map(([baseOffset, ...duplicates]) => ({
    baseOffset,
    duplicates: duplicates.length === 0 ? undefined : new Map(duplicates),
  }))
}

/**
 * The duplicates of a batch as its answer lists them; a message that replaced another is listed with its own offset.
 */
export function answeredDuplicates(
  duplicates: ReadonlyMap<number, number> | undefined,
  replacing: Iterable<number>,
  base: number,
): ReadonlyMap<number, number> | undefined {
  let answered: Map<number, number> | undefined
  for (const index of replacing) (answered ??= new Map(duplicates)).set(index, base + index)
  return answered === undefined ? duplicates : new Map([...answered].toSorted(([a], [b]) => a - b))
}

function forgotten(number: number, windowStart: number): SluiceError {
  return new SluiceError(
    'UNKNOWN_OUTCOME',
    `Batch ${number} is older than the window of its producer, which begins at ${windowStart}.`,
    { outcome: 'unknown' },
  )
}

function reused(number: number): SluiceError {
  return new SluiceError('NUMBER_REUSED', `Batch number ${number} was accepted before with other bytes.`)
}

// Numbers are nearly in ascending order, so the loop stops at the first number that is kept. A lower number after it is
// removed by a later call.
function forgetKeysBelow(map: Map<number, unknown>, end: number): void {
  for (const number of map.keys()) {
    if (number >= end) return
    map.delete(number)
  }
}
