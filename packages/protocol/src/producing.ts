/**
 * The payloads of PUBLISH, PUBLISH_OK and PUBLISH_ERR.
 *
 * PUBLISH: u8 queue name length · queue name · batch (see batch.ts).
 * PUBLISH_OK: for each batch u64 number · u64 base offset · u32 duplicates, then for each duplicate
 *   u32 index in the batch · u64 offset of the first acceptance. Other messages have offset base + index.
 * PUBLISH_ERR: u64 number · fault (see handshake.ts).
 */
import { BATCH_HEADER_BYTES } from './batch.js'
import { readU32, readU64, writeU64, writeU32 } from './bytes.js'
import { SluiceError } from './errors.js'
import { decodeFault, encodeFault, need, type Fault } from './handshake.js'

export const PUBLISH_OK_ITEM_BYTES = 20

/** Writes one item without duplicates; returns the position after it. */
export function writePublishOkItem(
  bytes: Uint8Array,
  at: number,
  batchNumber: number,
  baseOffset: number,
): number {
  writeU64(bytes, at, batchNumber)
  writeU64(bytes, at + 8, baseOffset)
  writeU32(bytes, at + 16, 0)
  return at + PUBLISH_OK_ITEM_BYTES
}

/** Duplicates of a batch: index in the batch → offset at which that message was accepted before. */
export type Duplicates = ReadonlyMap<number, number>

/** @throws SluiceError MALFORMED_FRAME */
export function decodePublishOk(
  bytes: Uint8Array,
  start: number,
  end: number,
  item: (batchNumber: number, baseOffset: number, duplicates: Duplicates | undefined) => void,
): void {
  let at = start
  while (at < end) {
    need('PUBLISH_OK', end - at, PUBLISH_OK_ITEM_BYTES)
    const batchNumber = readU64(bytes, at)
    const baseOffset = readU64(bytes, at + 8)
    const count = readU32(bytes, at + 16)
    at += PUBLISH_OK_ITEM_BYTES
    let duplicates: Map<number, number> | undefined
    if (count > 0) {
      need('PUBLISH_OK', end - at, count * 12)
      duplicates = new Map()
      for (let i = 0; i < count; i++, at += 12) duplicates.set(readU32(bytes, at), readU64(bytes, at + 4))
    }
    item(batchNumber, baseOffset, duplicates)
  }
}

export function encodePublishErr(batchNumber: number, fault: Fault): Uint8Array {
  const tail = encodeFault(fault)
  const bytes = new Uint8Array(8 + tail.length)
  writeU64(bytes, 0, batchNumber)
  bytes.set(tail, 8)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodePublishErr(
  bytes: Uint8Array,
  start: number,
  end: number,
): { batchNumber: number; fault: Fault } {
  need('PUBLISH_ERR', end - start, 8)
  return { batchNumber: readU64(bytes, start), fault: decodeFault(bytes, start + 8, end) }
}

/**
 * Where the batch begins, behind the queue's name. There is a whole batch header, so that a refusal has a number.
 * @throws SluiceError MALFORMED_FRAME
 */
export function publishBatchStart(bytes: Uint8Array, start: number, end: number): number {
  need('PUBLISH', end - start, 1)
  const at = start + 1 + bytes[start]!
  if (at > end)
    throw new SluiceError(
      'MALFORMED_FRAME',
      `PUBLISH names a queue of ${bytes[start]} bytes; ${end - start - 1} came.`,
    )
  need('The batch of PUBLISH', end - at, BATCH_HEADER_BYTES)
  return at
}
