/** What is shown of a queue: its counters, now or as of a time that the queue has not noticed yet. Called by `Queue`. */
import type { QueueInfo } from '@sluice/protocol'
import type { Chunk } from './chunk.js'
import type { Contents } from './contents.js'
import { eachExpired } from './expiries.js'
import type { Bucket } from './rate.js'

/** The queue, with the counters that its contents do not have. */
interface Described extends Contents {
  readonly ready: number
  readonly scheduled: number
  readonly leased: number
  readonly subscriptions: readonly unknown[]
  readonly bucket: Bucket | undefined
}

/** `oldestMs` is the publish or due time of the oldest ready message; Infinity if there is none. */
export function infoOf(queue: Described, oldestMs: number, heldKeys: number, nowMs: number): QueueInfo {
  const rateUntilMs = queue.bucket?.nextMs ?? 0
  return {
    name: queue.name,
    options: queue.options,
    paused: queue.paused,
    ready: queue.ready,
    scheduled: queue.scheduled,
    leased: queue.leased,
    dead: queue.deadCount,
    bytes: Math.round(queue.bytes),
    consumers: queue.subscriptions.length,
    oldestReadyMs: oldestMs === Infinity ? null : Math.max(0, nowMs - oldestMs),
    published: queue.next - queue.counts.duplicates,
    acked: queue.acked,
    ...queue.counts,
    retainedBytes: Math.round(queue.retainedBytes),
    rateUntilMs: rateUntilMs > nowMs ? rateUntilMs : null,
    heldKeys,
    createdAtMs: queue.createdAtMs,
  }
}

/**
 * The info as of `nowMs`: due messages count as ready, and expired ones as gone. `eachDue` visits the due messages that are
 * not ready yet. Changes nothing. The cost is proportional to the number of due messages and of chunks with expired ones.
 */
export function infoAsOf(
  info: QueueInfo,
  { chunks, bytes: recordBytes }: Contents,
  nowMs: number,
  eachDue: (each: (chunk: Chunk, index: number) => void) => void,
): QueueInfo {
  let due = 0
  let oldestDueMs = nowMs
  let expired = 0
  let bytes = 0
  const expire = (chunk: Chunk, index: number): void => {
    expired++
    bytes += chunk.bytesAt(index)
  }
  eachDue((chunk, index) => {
    due++
    oldestDueMs = Math.min(oldestDueMs, chunk.lineTimeAt(index))
    if (chunk.isExpired(index, nowMs)) expire(chunk, index)
  })
  eachExpired(chunks, nowMs, expire)
  return {
    ...info,
    ready: info.ready + due - expired,
    scheduled: info.scheduled - due,
    oldestReadyMs: due === 0 ? info.oldestReadyMs : Math.max(info.oldestReadyMs ?? 0, nowMs - oldestDueMs),
    expired: info.expired + expired,
    bytes: Math.round(recordBytes - bytes),
  }
}
