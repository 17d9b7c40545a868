/**
 * The chunks of one queue by offset, from the oldest that is not all gone to the newest. A chunk that is full and all
 * gone is dropped; an absent chunk means that everything in it is gone.
 */
import { CHUNK_MESSAGES } from './bits.js'
import { Chunk } from './chunk.js'
import { MARK } from './marks.js'

/** Offset after the last one of the chunk that holds `offset`. */
export function chunkEndAfter(offset: number): number {
  return (Math.floor(offset / CHUNK_MESSAGES) + 1) * CHUNK_MESSAGES
}

export class Chunks {
  #list: (Chunk | undefined)[] = []
  #first = 0

  /** Everything below this offset is gone. */
  get firstOffset(): number {
    return this.#first * CHUNK_MESSAGES
  }

  at(offset: number): Chunk | undefined {
    return this.#list[Math.floor(offset / CHUNK_MESSAGES) - this.#first]
  }

  /** The chunk of an offset that is about to be filled; made if it is not there. */
  toFill(offset: number): Chunk {
    const found = this.at(offset)
    if (found !== undefined) return found
    const base = chunkEndAfter(offset) - CHUNK_MESSAGES
    const chunk = new Chunk(base)
    if (offset > base) {
      // What stood before in this chunk is known to be gone: recovery found no page of it.
      chunk.marks.add(MARK.gone, 0, offset - base)
      chunk.count = offset - base
    }
    this.place(chunk)
    return chunk
  }

  /** Puts in a chunk that was made or read elsewhere. */
  place(chunk: Chunk): void {
    const at = chunk.base / CHUNK_MESSAGES
    if (this.#list.length === 0) this.#first = at
    if (at < this.#first) {
      const gap = Array.from({ length: this.#first - at }, () => undefined)
      this.#list = [...gap, ...this.#list]
      this.#first = at
    }
    while (at - this.#first > this.#list.length) this.#list.push(undefined)
    this.#list[at - this.#first] = chunk
  }

  clear(): void {
    this.#list = []
    this.#first = 0
  }

  drop(chunk: Chunk): void {
    this.#list[chunk.base / CHUNK_MESSAGES - this.#first] = undefined
    let empty = 0
    while (empty < this.#list.length && this.#list[empty] === undefined) empty++
    // The front is cut off in pieces, so that dropping stays cheap for a long line.
    if (empty === this.#list.length || (empty >= 64 && empty * 2 >= this.#list.length)) {
      this.#list.splice(0, empty)
      this.#first += empty
    }
  }

  *[Symbol.iterator](): IterableIterator<Chunk> {
    for (const chunk of this.#list.slice()) if (chunk !== undefined) yield chunk
  }
}
