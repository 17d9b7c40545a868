/** Reads records, for delivered and for peeked messages. */
import { recordContentType, recordPayloadAt, recordSize, viewBytes } from '@sluice/protocol'
import { decodeBody } from './body.js'

/** The body of the record at `at`. @throws SluiceError INVALID_BODY */
export function recordBody(bytes: Uint8Array, at: number): unknown {
  const end = at + recordSize(bytes, at)
  return decodeBody(recordContentType(bytes, at), bytes, recordPayloadAt(bytes, at), end)
}

/**
 * A copy of the records in `bytes[start, end)`, each with `gap` bytes before it. The first body begins at a multiple of 8 in
 * the new buffer, so that a large body needs no second copy to be aligned.
 */
export function recordsCopy(bytes: Uint8Array, start: number, end: number, gap: number): Uint8Array {
  const pad = (start - recordPayloadAt(bytes, start + gap)) & 7
  const copy = new Uint8Array(pad + end - start).subarray(pad)
  copy.set(viewBytes(bytes, start, end))
  return copy
}

/** The headers of a message without headers. */
export const NO_HEADERS: Readonly<Record<string, string>> = Object.freeze(
  Object.create(null) as Record<string, string>,
)

/** The method by which `console.log` shows an object. */
export const INSPECT = Symbol.for('nodejs.util.inspect.custom')
