/**
 * Bodies: bytes stay bytes, text stays text, anything else is msgpack of plain data. As in JSON, properties that are
 * undefined are left out and `toJSON` is used; what msgpack cannot say is refused with its path, never bent into
 * something near it: what a consumer reads equals what was published.
 */
import {
  CONTENT_TYPE,
  checkPlain,
  isWellFormed,
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
  try {
    const plain = isPlain(body, 0) ? body : copyOf(body)
    const pack = ++lastPack
    let packed: Uint8Array | undefined
    try {
      packed = packr.pack(plain, RESET_BUFFER_MODE)
    } catch (error) {
      if (pack === lastPack) throw error
    }
    // A getter packed another body meanwhile, in the same buffer. A copy has no getters.
    return pack === lastPack ? packed! : packr.pack(copyOf(body), RESET_BUFFER_MODE)
  } catch (error) {
    if (error instanceof SluiceError) throw error
    throw new SluiceError('INVALID_BODY', 'The body cannot be encoded.', { cause: error })
  }
}

let lastPack = 0

/** @throws SluiceError INVALID_BODY when the text has an unpaired surrogate, which UTF-8 cannot represent */
export function checkText(body: string): void {
  if (!isWellFormed(body)) {
    throw new SluiceError('INVALID_BODY', 'body is text with an unpaired surrogate; send it as bytes.')
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

/** Whether a value is plain data as it is: nothing to leave out, to convert or to refuse. */
function isPlain(value: unknown, depth: number): boolean {
  switch (typeof value) {
    case 'string':
      return isWellFormed(value)
    case 'number':
    case 'boolean':
      return true
    case 'bigint':
      return isInteger64(value)
    case 'object':
      break
    default:
      return false
  }
  if (value === null) return true
  if (depth === BODY_DEPTH_MAX) return false
  if (Array.isArray(value)) {
    const { length } = value
    for (let index = 0; index < length; index++) {
      const item: unknown = value[index]
      if (typeof item !== 'number' && !isPlain(item, depth + 1)) return false
    }
    // One more is a property that the array has beside its items.
    return Object.keys(value).length === length && toJsonOf(value) === undefined
  }
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) return isPlainInstance(value)
  for (const name of Object.keys(value)) {
    if (!isPlain((value as Record<string, unknown>)[name], depth + 1) || !isWellFormed(name)) return false
  }
  return toJsonOf(value) === undefined && Object.getOwnPropertySymbols(value).length === 0
}

function isPlainInstance(value: object): boolean {
  return value instanceof Date ? !Number.isNaN(value.getTime()) : value instanceof Uint8Array
}

function isInteger64(value: bigint): boolean {
  return value >= -(2n ** 63n) && value < 2n ** 64n
}

type ToJson = (name: string) => unknown

function toJsonOf(value: object): ToJson | undefined {
  const { toJSON } = value as { readonly toJSON?: unknown }
  return typeof toJSON === 'function' ? (toJSON as ToJson) : undefined
}

type Step = string | number

/** `what` is wrong, at the end of these steps from the body. */
function bodyFault(what: string, path: readonly Step[], cause?: unknown): SluiceError {
  const error = new SluiceError(
    'INVALID_BODY',
    `body${shownPath(path)} ${what}; a body is bytes, text, or plain data of null, booleans, numbers, bigints, text, dates, bytes, arrays and objects.`,
    { cause },
  )
  // V8 keeps ten frames: those of a deep walk would leave none for the line that published.
  Error.captureStackTrace(error, packBody)
  return error
}

/** Steps of a path that are shown at its beginning and at its end. */
const PATH_STEPS_SHOWN = 4

function shownPath(path: readonly Step[]): string {
  const steps = path.map((step) =>
    typeof step === 'number'
      ? `[${step}]`
      : /^[A-Za-z_$][\w$]{0,39}$/.test(step)
        ? `.${step}`
        : `[${shown(step)}]`,
  )
  if (steps.length <= PATH_STEPS_SHOWN * 2) return steps.join('')
  const left = steps.length - PATH_STEPS_SHOWN * 2
  return `${steps.slice(0, PATH_STEPS_SHOWN).join('')} … (${left} steps) … ${steps.slice(-PATH_STEPS_SHOWN).join('')}`
}

/**
 * A copy of a body that is not plain as it is: without properties that are undefined, and with what `toJSON` returns in
 * place of the object that has it, as JSON does. Dates and bytes stay themselves, though they have that method.
 * @throws SluiceError INVALID_BODY naming the first thing that is not plain data
 */
function copyOf(body: unknown): unknown {
  const path: Step[] = []
  return plainCopy(converted(body, '', path), path, [])
}

/** What JSON would go on with: `value`, or what its `toJSON` returns. @throws SluiceError INVALID_BODY */
function converted(value: unknown, name: Step, path: readonly Step[]): unknown {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return value
  try {
    if (value instanceof Date || value instanceof Uint8Array) return value
    const toJson = toJsonOf(value)
    return toJson === undefined ? value : toJson.call(value, String(name))
  } catch (error) {
    throw bodyFault('has a `toJSON` that threw', path, error)
  }
}

// `path` leads to `value`; `ancestors` are the objects that contain it.
function plainCopy(value: unknown, path: Step[], ancestors: object[]): unknown {
  if (typeof value !== 'object' || value === null) {
    const what = scalarFault(value)
    if (what !== undefined) throw bodyFault(what, path)
    return value
  }
  if (ancestors.includes(value)) throw bodyFault('refers to an object that contains it', path)
  if (ancestors.length === BODY_DEPTH_MAX) throw bodyFault(`is nested deeper than ${BODY_DEPTH_MAX}`, path)
  const isArray = Array.isArray(value)
  if (!isArray) {
    const prototype: unknown = Object.getPrototypeOf(value)
    if (prototype !== Object.prototype && prototype !== null) {
      if (isPlainInstance(value)) return value
      throw bodyFault(instanceFault(value), path)
    }
  }
  ancestors.push(value)
  const copy = isArray ? arrayCopy(value, path, ancestors) : objectCopy(value, path, ancestors)
  ancestors.pop()
  return copy
}

function arrayCopy(array: readonly unknown[], path: Step[], ancestors: object[]): unknown[] {
  const copy: unknown[] = []
  for (let index = 0; index < array.length; index++) {
    path.push(index)
    copy.push(plainCopy(converted(array[index], index, path), path, ancestors))
    path.pop()
  }
  const extra = Object.keys(array)[array.length]
  if (extra === undefined) return copy
  throw bodyFault(`is an array that has a property ${shown(extra)} beside its items`, path)
}

function objectCopy(object: object, path: Step[], ancestors: object[]): object {
  const copy: Record<string, unknown> = {}
  for (const name of Object.keys(object)) {
    path.push(name)
    if (!isWellFormed(name)) throw bodyFault('has an unpaired surrogate in its name', path)
    const item = converted((object as Record<string, unknown>)[name], name, path)
    if (item !== undefined) setProperty(copy, name, plainCopy(item, path, ancestors))
    path.pop()
  }
  if (Object.getOwnPropertySymbols(object).length > 0)
    throw bodyFault('has a symbol as the name of a property', path)
  return copy
}

function scalarFault(value: unknown): string | undefined {
  switch (typeof value) {
    case 'string':
      return isWellFormed(value) ? undefined : 'is text with an unpaired surrogate'
    case 'bigint':
      return isInteger64(value) ? undefined : 'is a bigint of more than 64 bits'
    case 'undefined':
      return 'is undefined'
    case 'function':
    case 'symbol':
      return `is a ${typeof value}`
    default:
      return undefined
  }
}

function instanceFault(value: object): string {
  if (value instanceof Date) return 'is an invalid date'
  const name: unknown = (value.constructor as { name?: unknown } | undefined)?.name
  return `is ${typeof name === 'string' && name !== '' ? `a ${name.slice(0, 40)}` : 'a class instance'}`
}

/** Sets a property as data, also one of the name `__proto__`. */
function setProperty(object: Record<string, unknown>, name: string, value: unknown): void {
  if (name === '__proto__') {
    Object.defineProperty(object, name, { value, enumerable: true, configurable: true, writable: true })
  } else object[name] = value
}

/** Turns decoded Maps into objects, in place where that is possible. */
function objectsFrom(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Map) {
    const object: Record<string, unknown> = {}
    for (const [name, item] of value as Map<string, unknown>) setProperty(object, name, objectsFrom(item))
    return object
  }
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index++) value[index] = objectsFrom(value[index])
    return value
  }
  if (value instanceof Date && Number.isNaN(value.getTime())) throw new Error('a time out of range')
  return value
}
