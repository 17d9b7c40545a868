/**
 * The interface through which the volatile part of a queue is notified of messages that entered or are gone, of pending ids
 * and of copied batches. Once recovery is over, `Contents` calls it. `Queue` is the only implementation.
 */
import type { Chunk } from './chunk.js'
import type { ChunkSummary } from './cold.js'
import type { Copy } from './log-use.js'

export interface Follower {
  /** The messages of `chunk` at `[from, to)` are new. */
  entered(chunk: Chunk, from: number, to: number): void
  /** Every message below `end` has entered, or is gone. */
  passed(end: number): void
  /** The message at `offset` has an id and is pending. */
  idPending(offset: number): void
  /** The message at `offset` has an id and is no longer pending; it is still in its chunk. */
  idDone(offset: number): void
  /**
   * Some or all messages of the batch with the number `batch` in `chunk` are gone, or are no longer retained. The log need
   * no longer keep the records of `messages` of them, which have about `bytes`.
   */
  removedFrom(chunk: Chunk, batch: number, messages: number, bytes: number): void
  /** All messages of a cold chunk are gone and none is retained. Called after the chunk was dropped. */
  removedCold(number: number, summary: ChunkSummary): void
  /** A batch that is needed, or a shared batch of which a row is needed, was copied. */
  copied(copy: Copy): void
  /** The queue is about to be dropped. */
  dropped(): void
}

/** The follower during recovery. It does nothing: the volatile part is built at the end, from the contents after all facts. */
export const NO_FOLLOWER: Follower = {
  entered() {},
  passed() {},
  idPending() {},
  idDone() {},
  removedFrom() {},
  removedCold() {},
  copied() {},
  dropped() {},
}
