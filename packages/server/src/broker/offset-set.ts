/**
 * A set of offsets in `[floor, floor + size)`; other offsets are ignored. The bits are stored in pieces; a piece is
 * allocated when its first offset is added.
 */
import { addBits, hasBit, removeBits } from '../queue/bits.js'

/** Number of offsets in one piece. A piece takes 8 KiB. */
const PIECE_OFFSETS = 1 << 16

export class OffsetSet {
  readonly #floor: number
  readonly #size: number
  readonly #pieces = new Map<number, Uint32Array>()

  constructor(floor: number, size: number) {
    this.#floor = floor
    this.#size = size
  }

  add(offset: number, count: number): void {
    const end = Math.min(offset + count - this.#floor, this.#size)
    for (let from = Math.max(offset - this.#floor, 0); from < end;) {
      const piece = Math.floor(from / PIECE_OFFSETS)
      const to = Math.min(end, (piece + 1) * PIECE_OFFSETS)
      let words = this.#pieces.get(piece)
      if (words === undefined) this.#pieces.set(piece, (words = new Uint32Array(PIECE_OFFSETS / 32)))
      addBits(words, from - piece * PIECE_OFFSETS, to - piece * PIECE_OFFSETS)
      from = to
    }
  }

  has(offset: number): boolean {
    const at = offset - this.#floor
    const words = this.#pieces.get(Math.floor(at / PIECE_OFFSETS))
    return words !== undefined && hasBit(words, at % PIECE_OFFSETS)
  }

  remove(offset: number): void {
    const at = offset - this.#floor
    const words = this.#pieces.get(Math.floor(at / PIECE_OFFSETS))
    if (words !== undefined) removeBits(words, at % PIECE_OFFSETS, (at % PIECE_OFFSETS) + 1)
  }

  subtract(other: OffsetSet | undefined): void {
    if (other === undefined) return
    for (const [piece, words] of this.#pieces) {
      const taken = other.#pieces.get(piece)
      if (taken !== undefined) for (let i = 0; i < words.length; i++) words[i]! &= ~taken[i]!
    }
  }
}
