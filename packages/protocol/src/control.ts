/**
 * Control frames: msgpack maps of at most 64 KiB, decoded only after authentication and then checked for shape.
 * The decoder is set so that nothing but plain data comes out: no records, no extensions, maps as Map.
 */
import { Packr, Unpackr } from 'msgpackr/index-no-eval'
import { SluiceError } from './errors.js'
import { LIMITS } from './limits.js'

/** Plain data as it travels in control frames and in bodies. */
export type Plain =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | Date
  | readonly Plain[]
  | { readonly [name: string]: Plain }

const packr = new Packr({ useRecords: false, variableMapSize: true })
// 'auto' (a number where it is exact, else a bigint) is missing from the types of msgpackr 2.1.
const decoding: object = {
  useRecords: false,
  mapsAsObjects: false,
  structuredClone: false,
  copyBuffers: true,
  int64AsType: 'auto',
}
const unpackr = new Unpackr(decoding)

export function encodeControl(body: { readonly [name: string]: unknown }): Uint8Array {
  const bytes = packr.pack(body)
  if (bytes.length > LIMITS.controlBytesMax) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `A request of ${bytes.length} bytes is too long; at most ${LIMITS.controlBytesMax} fit.`,
    )
  }
  return bytes
}

/**
 * Decodes the map of a control frame into an object without a prototype.
 * @throws SluiceError MALFORMED_FRAME
 */
export function decodeControl(
  bytes: Uint8Array,
  start: number,
  end: number,
): { readonly [name: string]: unknown } {
  if (end - start > LIMITS.controlBytesMax) {
    throw new SluiceError(
      'MALFORMED_FRAME',
      `A control frame has ${end - start} bytes; at most ${LIMITS.controlBytesMax} are accepted.`,
    )
  }
  let value: unknown
  try {
    value = plainFrom(unpackr.unpack(bytes.subarray(start, end)), 0)
  } catch (error) {
    // The decoder's own message may quote hostile bytes; it goes no further than `cause`.
    throw new SluiceError('MALFORMED_FRAME', 'A control frame is not one msgpack map of plain data.', {
      cause: error,
    })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
    throw new SluiceError('MALFORMED_FRAME', 'A control frame is not one msgpack map of plain data.')
  }
  return value as { readonly [name: string]: unknown }
}

const DEPTH_MAX = 64

/** Turns decoded Maps into objects without a prototype; refuses all that is not plain data. */
function plainFrom(value: unknown, depth: number): unknown {
  if (depth > DEPTH_MAX) throw new Error(`nested deeper than ${DEPTH_MAX}`)
  if (value === null || typeof value !== 'object') {
    if (typeof value === 'function' || typeof value === 'symbol' || value === undefined)
      throw new Error('not plain data')
    return value
  }
  if (Array.isArray(value)) return value.map((item) => plainFrom(item, depth + 1))
  if (value instanceof Uint8Array || value instanceof Date) return value
  if (value instanceof Map) {
    const object: Record<string, unknown> = Object.create(null) as Record<string, unknown>
    for (const [name, item] of value) {
      if (typeof name !== 'string' && typeof name !== 'number') throw new Error('a map key is not text')
      object[name] = plainFrom(item, depth + 1)
    }
    return object
  }
  throw new Error('not plain data')
}
