/**
 * Bodies: bytes stay bytes, text stays text, anything else is msgpack of plain data. What msgpack cannot say is
 * refused with its path, never bent into something near it: what a consumer reads equals what was published.
 */
import {
  CONTENT_TYPE,
  checkPlain,
  LIMITS,
  NOT_PLAIN,
  readText,
  shown,
  SluiceError,
  viewBytes,
} from '@sluice/protocol'
import { Packr, RESET_BUFFER_MODE, Unpackr } from 'msgpackr/index-no-eval'

/** Deepest nesting of a body, the outermost list or map counted. */
export const BODY_DEPTH_MAX = LIMITS.controlDepthMax

// `useToJSON` is missing from the types of msgpackr 2.1.
const encoding: object = { useRecords: false, variableMapSize: true, useToJSON: false }
const packr = new Packr(encoding)

const decoding: object = {
  useRecords: false,
  structuredClone: false,
  copyBuffers: true,
  // Numbers travel as 32-bit integers or floats, so that a 64-bit integer is always what was a bigint.
  int64AsType: 'bigint',
}
const unpackr = new Unpackr({ ...decoding, mapsAsObjects: true })
const unpackrToMaps = new Unpackr({ ...decoding, mapsAsObjects: false })

/**
 * Packs plain data. The result is overwritten by the next call: copy it.
 * @throws SluiceError INVALID_BODY naming the path of what is not plain data
 */
export function packBody(body: unknown): Uint8Array {
  const fault = plainFault(body, 0)
  if (fault !== undefined) {
    throw new SluiceError(
      'INVALID_BODY',
      `body${fault}; a body is bytes, text, or plain data of null, booleans, numbers, bigints, text, dates, bytes, arrays and objects.`,
    )
  }
  try {
    return packr.pack(body, RESET_BUFFER_MODE)
  } catch (error) {
    throw new SluiceError('INVALID_BODY', 'The body cannot be encoded.', { cause: error })
  }
}

/** @throws SluiceError INVALID_BODY when the text has half a surrogate pair, which UTF-8 cannot hold */
export function checkText(body: string): void {
  if (!isWellFormed(body)) {
    throw new SluiceError('INVALID_BODY', 'body is text with half a surrogate pair; send it as bytes.')
  }
}

/**
 * The payload in `bytes[start, end)` as the value that was published.
 * @throws SluiceError INVALID_BODY
 */
export function decodeBody(contentType: number, bytes: Uint8Array, start: number, end: number): unknown {
  if (contentType === CONTENT_TYPE.text) return readText(bytes, start, end)
  if (contentType === CONTENT_TYPE.bytes) return ownBytes(bytes, start, end)
  // Walked before msgpackr sees it: a broker may be hostile, or hold what another program published.
  const found = checkPlain(bytes, start, end)
  if (found === NOT_PLAIN) throw notPlain()
  try {
    const packed = bytes.subarray(start, end)
    // Nearly all there is, decoded at once: an object of four properties takes 1.0 µs, by way of maps 2.6.
    if (found === 0) return unpackr.unpack(packed)
    return objectsFrom(unpackrToMaps.unpack(packed))
  } catch (error) {
    // The decoder's own words may quote hostile bytes: they go no further than `cause`.
    throw notPlain(error)
  }
}

function notPlain(cause?: unknown): SluiceError {
  return new SluiceError('INVALID_BODY', 'The body is not one msgpack value of plain data.', { cause })
}

/**
 * Small bodies share buffers of this size. A buffer of its own, which above 64 bytes comes from the system, added half to
 * what a consumer spent on a message of 128 bytes: 1.0 against 0.65 µs.
 */
export const SHARED_BYTES = 16 * 1024
const SHARED_BODY_BYTES_MAX = 4 * 1024
let shared = new Uint8Array(SHARED_BYTES)
let sharedAt = 0

// A small part of a large buffer is copied, because whoever keeps it would keep all of the buffer alive; and so is what
// does not begin where it can be read as numbers of up to 8 bytes.
function ownBytes(bytes: Uint8Array, start: number, end: number): Uint8Array {
  const length = end - start
  const isAligned = ((bytes.byteOffset + start) & 7) === 0
  if (isAligned && bytes.buffer.byteLength <= Math.max(SHARED_BYTES, length * 4))
    return viewBytes(bytes, start, end)
  if (length > SHARED_BODY_BYTES_MAX) return bytes.slice(start, end)
  if (sharedAt + length > SHARED_BYTES) {
    shared = new Uint8Array(SHARED_BYTES)
    sharedAt = 0
  }
  const body = shared.subarray(sharedAt, sharedAt + length)
  body.set(viewBytes(bytes, start, end))
  sharedAt += (length + 7) & ~7
  return body
}

// Not in the library types of ES2023; every supported Node has it.
const wellFormed = (String.prototype as { isWellFormed?: () => boolean }).isWellFormed!
function isWellFormed(text: string): boolean {
  return wellFormed.call(text)
}

/** What is wrong with a value and where, or undefined. The path is put together only on the way back from a fault. */
function plainFault(value: unknown, depth: number): string | undefined {
  switch (typeof value) {
    case 'string':
      return isWellFormed(value) ? undefined : ' is text with half a surrogate pair'
    case 'number':
    case 'boolean':
      return undefined
    case 'bigint':
      return value >= -(2n ** 63n) && value < 2n ** 64n ? undefined : ' is a bigint of more than 64 bits'
    case 'object':
      break
    default:
      return ` is ${value === undefined ? 'undefined' : `a ${typeof value}`}`
  }
  if (value === null) return undefined
  if (depth === BODY_DEPTH_MAX) return ` is nested deeper than ${BODY_DEPTH_MAX}`
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index++) {
      const fault = plainFault(value[index], depth + 1)
      if (fault !== undefined) return `[${index}]${fault}`
    }
    return undefined
  }
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) return instanceFault(value)
  for (const name of Object.keys(value)) {
    const fault = plainFault((value as Record<string, unknown>)[name], depth + 1)
    if (fault !== undefined) return `${step(name)}${fault}`
    if (!isWellFormed(name)) return `${step(name)} has half a surrogate pair in its name`
  }
  if (Object.getOwnPropertySymbols(value).length > 0) return ' has a symbol as the name of a property'
  return undefined
}

function instanceFault(value: object): string | undefined {
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? ' is an invalid date' : undefined
  if (value instanceof Uint8Array) return undefined
  const name: unknown = (value.constructor as { name?: unknown } | undefined)?.name
  return ` is ${typeof name === 'string' && name !== '' ? `a ${name}` : 'a class instance'}`
}

function step(name: string): string {
  return /^[A-Za-z_$][\w$]*$/.test(name) ? `.${name}` : `[${shown(name)}]`
}

/** Turns decoded Maps into objects, in place where that is possible. */
function objectsFrom(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Map) {
    const object: Record<string, unknown> = {}
    for (const [name, item] of value as Map<string, unknown>) {
      if (name === '__proto__') {
        // As data, never as the prototype.
        const property = { value: objectsFrom(item), enumerable: true, configurable: true, writable: true }
        Object.defineProperty(object, name, property)
      } else object[name] = objectsFrom(item)
    }
    return object
  }
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index++) value[index] = objectsFrom(value[index])
    return value
  }
  if (value instanceof Date && Number.isNaN(value.getTime())) throw new Error('a time out of range')
  return value
}
