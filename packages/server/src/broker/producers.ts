/**
 * Producers and the results of their recent batches, so that a batch that is sent again is answered and not taken
 * again (invariant 3). Accepted numbers are facts of the log; refused ones are remembered until the broker stops.
 *
 * With each batch a producer says how many numbers below it are still unanswered. What is older than that is
 * forgotten, so a window is as long as what is really in flight.
 */
import { LIMITS, SluiceError, readU32, readU64, writeU32, writeU64, type Fault } from '@sluice/protocol'

const IDENTITY_BYTES = 16
const PAGE_HEAD_BYTES = IDENTITY_BYTES + 4 + 4 + 8 + 8 + 8
const PAGE_ITEM_BYTES = 20

export class Producer {
  /** Id in the log; 0 until the first batch is accepted. */
  id: number
  /** Sixteen bytes in hex. */
  readonly identity: string
  /** Highest number that was accepted; 0 when none. */
  highest = 0
  lastUsedMs = 0
  /** Open connections of this producer. */
  connections = 0
  dirty = true
  pagePosition = -1
  /** Results of numbers below this are forgotten. */
  floor = 1
  #numbers = new Float64Array(16)
  #bases = new Float64Array(16)
  #crcs = new Uint32Array(16)
  #refused: Map<number, Fault> | undefined

  constructor(id: number, identity: string) {
    this.id = id
    this.identity = identity
  }

  /** The producer waits for no number below `floor`. */
  forgetBelow(floor: number): void {
    if (floor <= this.floor) return
    this.floor = floor
    if (this.#refused === undefined) return
    for (const number of this.#refused.keys()) if (number < floor) this.#refused.delete(number)
  }

  /** Base offset at which `number` was accepted, -1 if it was not. @throws SluiceError NUMBER_REUSED */
  acceptedAt(number: number, recordsCrc: number): number {
    const slot = number & (this.#numbers.length - 1)
    if (this.#numbers[slot] !== number) return -1
    if (this.#crcs[slot] !== recordsCrc) {
      throw new SluiceError('NUMBER_REUSED', `Batch number ${number} was accepted before with other bytes.`)
    }
    return this.#bases[slot]!
  }

  refusalOf(number: number): Fault | undefined {
    return this.#refused?.get(number)
  }

  accept(number: number, base: number, recordsCrc: number): void {
    if (number > this.highest) this.highest = number
    while (number - this.floor >= this.#numbers.length) {
      if (this.#numbers.length >= LIMITS.inFlightBatchesMax) {
        this.floor = number - LIMITS.inFlightBatchesMax + 1
      } else {
        this.#grow()
      }
    }
    const slot = number & (this.#numbers.length - 1)
    this.#numbers[slot] = number
    this.#bases[slot] = base
    this.#crcs[slot] = recordsCrc
    this.#refused?.delete(number)
    this.dirty = true
  }

  refuse(number: number, fault: Fault): void {
    this.#refused ??= new Map()
    this.#refused.set(number, fault)
  }

  #grow(): void {
    const old = this.#numbers
    const bases = this.#bases
    const crcs = this.#crcs
    this.#numbers = new Float64Array(old.length * 2)
    this.#bases = new Float64Array(old.length * 2)
    this.#crcs = new Uint32Array(old.length * 2)
    for (let slot = 0; slot < old.length; slot++) {
      const number = old[slot]!
      if (number < this.floor) continue
      const to = number & (this.#numbers.length - 1)
      this.#numbers[to] = number
      this.#bases[to] = bases[slot]!
      this.#crcs[to] = crcs[slot]!
    }
  }

  /**
   * State page: 16 B identity · u32 id · u32 count · u64 highest · u64 floor · u64 last used, ms ·
   * items of u64 number, u64 base offset, u32 records CRC.
   */
  encodePage(): Uint8Array {
    const slots: number[] = []
    for (let slot = 0; slot < this.#numbers.length; slot++) {
      if (this.#numbers[slot]! >= this.floor) slots.push(slot)
    }
    const bytes = new Uint8Array(PAGE_HEAD_BYTES + slots.length * PAGE_ITEM_BYTES)
    bytes.set(Buffer.from(this.identity, 'hex'))
    writeU32(bytes, 16, this.id)
    writeU32(bytes, 20, slots.length)
    writeU64(bytes, 24, this.highest)
    writeU64(bytes, 32, this.floor)
    writeU64(bytes, 40, this.lastUsedMs)
    let at = PAGE_HEAD_BYTES
    for (const slot of slots) {
      writeU64(bytes, at, this.#numbers[slot]!)
      writeU64(bytes, at + 8, this.#bases[slot]!)
      writeU32(bytes, at + 16, this.#crcs[slot]!)
      at += PAGE_ITEM_BYTES
    }
    return bytes
  }

  static decodePage(bytes: Uint8Array, start: number): Producer {
    const identity = Buffer.from(bytes.subarray(start, start + IDENTITY_BYTES)).toString('hex')
    const producer = new Producer(readU32(bytes, start + 16), identity)
    const count = readU32(bytes, start + 20)
    producer.floor = readU64(bytes, start + 32)
    let at = start + PAGE_HEAD_BYTES
    for (let i = 0; i < count; i++, at += PAGE_ITEM_BYTES) {
      producer.accept(readU64(bytes, at), readU64(bytes, at + 8), readU32(bytes, at + 16))
    }
    producer.highest = readU64(bytes, start + 24)
    producer.lastUsedMs = readU64(bytes, start + 40)
    producer.dirty = false
    return producer
  }
}
