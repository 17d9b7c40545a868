/**
 * Control frames: msgpack maps of at most 64 KiB. They are decoded only after authentication. The bytes are checked
 * before msgpackr decodes them, because msgpackr has extensions that go beyond plain data: with one extension, a single
 * frame expands to a hundred megabytes of text. The shape of the decoded map is checked afterwards.
 */
import { Packr, Unpackr } from 'msgpackr/index-no-eval'
import { copyBytes, isWellFormed } from './bytes.js'
import { shown, SluiceError } from './errors.js'
import { LIMITS } from './limits.js'

/** Plain data in control frames and bodies. */
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

// `skipValues` is missing from the types of msgpackr 2.1.
const packing: object = { useRecords: false, variableMapSize: true, skipValues: [undefined] }
const packr = new Packr(packing)
// The value 'auto' is missing from the types of msgpackr 2.1. With it, an integer is decoded as a number if the number
// is exact, and otherwise as a bigint.
const decoding: object = {
  useRecords: false,
  mapsAsObjects: false,
  structuredClone: false,
  copyBuffers: true,
  int64AsType: 'auto',
}
const unpackr = new Unpackr(decoding)

/**
 * Encodes the fields that are not undefined.
 * @throws SluiceError INVALID_ARGUMENT
 */
export function encodeControl(body: { readonly [name: string]: unknown }): Uint8Array {
  checkTexts(body)
  const bytes = packr.pack(body)
  if (bytes.length > LIMITS.controlBytesMax) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `A request of ${bytes.length} bytes is too long; at most ${LIMITS.controlBytesMax} are allowed.`,
    )
  }
  return bytes
}

// Refuses text that UTF-8 cannot represent, because it would arrive as different text. @throws SluiceError
// INVALID_ARGUMENT
function checkTexts(value: unknown): void {
  if (typeof value === 'string') {
    if (isWellFormed(value)) return
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `A request has the text ${shown(value)}: it has an unpaired surrogate, which UTF-8 cannot represent.`,
    )
  }
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return
  for (const [name, item] of Object.entries(value)) {
    checkTexts(name)
    checkTexts(item)
  }
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
  const found = checkPlain(bytes, start, end)
  if (found === NOT_PLAIN || found & PLAIN_HAS.timestamps) throw notPlain()
  let value: unknown
  try {
    value = objectsFrom(unpackr.unpack(copyBytes(bytes, start, end)))
  } catch (error) {
    // The decoder's message may quote hostile bytes, so it is kept in `cause` only.
    throw notPlain(error)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
    throw notPlain()
  }
  return value as { readonly [name: string]: unknown }
}

function notPlain(cause?: unknown): SluiceError {
  return new SluiceError('MALFORMED_FRAME', 'A control frame is not one msgpack map of plain data.', {
    cause,
  })
}

/** Turns decoded Maps into objects without a prototype, where `__proto__` is a name like any other. */
function objectsFrom(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(objectsFrom)
  if (!(value instanceof Map)) return value
  const object: Record<string, unknown> = Object.create(null) as Record<string, unknown>
  for (const [name, item] of value as Map<string, unknown>) object[name] = objectsFrom(item)
  return object
}

/** Result of `checkPlain` for bytes that are not plain data. */
export const NOT_PLAIN = -1
/** Bits of the result of `checkPlain` for plain data. */
export const PLAIN_HAS = {
  timestamps: 1,
  /** A map has a key `__proto__`, or a key of more than 31 bytes. */
  rareKeys: 2,
} as const

/**
 * Checks that `bytes[start, end)` is exactly one msgpack value of plain data: nil, booleans, numbers, text, bytes,
 * timestamps, lists, and maps with text keys, nested at most LIMITS.controlDepthMax deep. Timestamps are the only
 * extension. The check takes time in proportion to the number of bytes, even if they announce greater lengths.
 */
export function checkPlain(bytes: Uint8Array, start: number, end: number): number {
  let found = 0
  // Remaining values of each open map or list. A map counts keys and values, so an even number means that a key is next.
  const left = [1]
  const inMap = [false]
  let at = start
  while (left.length > 0) {
    const level = left.length - 1
    const due = left[level]!
    if (due === 0) {
      left.pop()
      inMap.pop()
      continue
    }
    left[level] = due - 1
    if (at >= end) return NOT_PLAIN
    const token = bytes[at]!
    if (inMap[level] && due % 2 === 0) {
      if (!isText(token)) return NOT_PLAIN
      if (token >= 0xc0 || isProto(bytes, at, end)) found |= PLAIN_HAS.rareKeys
    }
    at++
    let items = -1
    if (token < 0x80 || token >= 0xe0) continue
    if (token < 0x90) items = (token & 15) * 2
    else if (token < 0xa0) items = token & 15
    else if (token < 0xc0) at += token & 31
    else {
      const size = SIZES[token - 0xc0]!
      if (size < 0) {
        const bytesOfType = TIMESTAMP_BYTES.get(token)
        if (bytesOfType === undefined) return NOT_PLAIN
        found |= PLAIN_HAS.timestamps
        const typeAt = token === EXT_8 ? at + 1 : at
        if (typeAt >= end || bytes[typeAt] !== TIMESTAMP) return NOT_PLAIN
        if (token === EXT_8 && bytes[at] !== 12) return NOT_PLAIN
        at += bytesOfType
      } else if (token < 0xc4 || (token >= 0xca && token < 0xd4)) {
        at += size
      } else {
        if (end - at < size) return NOT_PLAIN
        const length = readLength(bytes, at, size)
        at += size
        if (token >= 0xde) items = length * 2
        else if (token >= 0xdc) items = length
        else at += length
      }
    }
    if (at > end) return NOT_PLAIN
    if (items >= 0) {
      // Each item takes at least one byte, so a count that does not fit is refused before anything is allocated.
      if (items > end - at || left.length > LIMITS.controlDepthMax) return NOT_PLAIN
      left.push(items)
      inMap.push(token < 0x90 || token >= 0xde)
    }
  }
  return at === end ? found : NOT_PLAIN
}

function isText(token: number): boolean {
  return (token >= 0xa0 && token < 0xc0) || (token >= 0xd9 && token <= 0xdb)
}

// Whether the text at `at`, of at most 31 bytes, is `__proto__`.
function isProto(bytes: Uint8Array, at: number, end: number): boolean {
  if (bytes[at] !== PROTO[0] || bytes[at + 1] !== PROTO[1] || end - at < PROTO.length) return false
  return PROTO.every((byte, index) => bytes[at + index] === byte)
}

function readLength(bytes: Uint8Array, at: number, size: number): number {
  let length = 0
  for (let i = 0; i < size; i++) length = length * 256 + bytes[at + i]!
  return length
}

// For each token from 0xc0 to 0xdf, the number of bytes of its value, or of the length that precedes the value. -1
// marks extensions and the token that msgpack never uses.
const SIZES = [
  0, -1, 0, 0, 1, 2, 4, -1, -1, -1, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, -1, -1, -1, -1, -1, 1, 2, 4, 2, 4, 2, 4,
]
const PROTO = Buffer.from([0xa9, ...Buffer.from('__proto__')])
const EXT_8 = 0xc7
const TIMESTAMP = 0xff
// Number of bytes after the token in each form of a timestamp: fixext 4, fixext 8, ext 8 of 12 bytes.
const TIMESTAMP_BYTES: ReadonlyMap<number, number> = new Map([
  [0xd6, 1 + 4],
  [0xd7, 1 + 8],
  [EXT_8, 2 + 12],
])
