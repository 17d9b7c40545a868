/** Records as messages read them: each of these is the same for one that was delivered and one that was looked at. */
import { recordContentType, recordPayloadAt, recordSize, viewBytes } from '@sluice/protocol'
import { decodeBody } from './body.js'

/** The body of the record at `at`. @throws SluiceError INVALID_BODY */
export function recordBody(bytes: Uint8Array, at: number): unknown {
  const end = at + recordSize(bytes, at)
  return decodeBody(recordContentType(bytes, at), bytes, recordPayloadAt(bytes, at), end)
}

/**
 * A copy of `bytes[start, end)`, records with `gap` bytes before each. The body of the first begins at a multiple of 8 of
 * its buffer: of a large one no further copy is needed for that.
 */
export function recordsCopy(bytes: Uint8Array, start: number, end: number, gap: number): Uint8Array {
  const pad = (start - recordPayloadAt(bytes, start + gap)) & 7
  const copy = new Uint8Array(pad + end - start).subarray(pad)
  copy.set(viewBytes(bytes, start, end))
  return copy
}

/** The headers of a message that has none. */
export const NO_HEADERS: Readonly<Record<string, string>> = Object.freeze(
  Object.create(null) as Record<string, string>,
)

/** Where `console.log` asks an object what it should show. */
export const INSPECT = Symbol.for('nodejs.util.inspect.custom')
