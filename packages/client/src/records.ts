/** Records as messages read them: each of these is the same for one that was delivered and one that was looked at. */
import { RECORD_HEADER_BYTES, readU16, readU32 } from '@sluice/protocol'
import { decodeBody } from './body.js'

/** The body of the record at `at`. @throws SluiceError INVALID_BODY */
export function recordBody(bytes: Uint8Array, at: number): unknown {
  const start = at + RECORD_HEADER_BYTES + readU16(bytes, at + 6)
  return decodeBody(bytes[at + 5]! >> 5, bytes, start, at + readU32(bytes, at))
}

/** The headers of a message that has none. */
export const NO_HEADERS: Readonly<Record<string, string>> = Object.freeze(
  Object.create(null) as Record<string, string>,
)

/** Where `console.log` asks an object what it should show. */
export const INSPECT = Symbol.for('nodejs.util.inspect.custom')
