/**
 * The frames at the beginning and the end of a connection. All have a fixed binary layout: no msgpack is read from a peer
 * that has not authenticated. Unknown trailing bytes of HELLO and HELLO_OK are ignored, so that a later version can add
 * fields.
 */
import {
  clipText,
  copyBytes,
  readText,
  readU16,
  readU32,
  readU64,
  textBytes,
  writeText,
  writeU16,
  writeU32,
  writeU64,
} from './bytes.js'
import { ERRORS, SluiceError, errorCode, type ErrorCode, type ErrorScope } from './errors.js'
import { LIMITS } from './limits.js'

export const PRODUCER_IDENTITY_BYTES = 16

/** Feature bits. A connection has the features that both sides name. Version 1 defines none. */
export const FEATURES = {} as const satisfies Record<string, number>

/** Where a confirmed message is stored: `memory` is for tests, `disk` survives a power loss. */
export const DURABILITY = { memory: 0, disk: 1 } as const

export const MECHANISM = { anonymous: 0 } as const

export interface Hello {
  readonly versionMin: number
  readonly versionMax: number
  readonly features: number
  readonly frameBytesMax: number
  readonly heartbeatMs: number
  /**
   * Identity of the producer: sixteen random bytes, which a client keeps across reconnects. After PRODUCER_UNKNOWN it
   * chooses new ones.
   */
  readonly producer: Uint8Array
  /** Highest batch number that the broker has confirmed to this producer; 0 if there is none. */
  readonly acceptedNumber: number
  readonly inFlightBatchesMax: number
  readonly name: string
}

export interface HelloOk {
  readonly version: number
  readonly features: number
  readonly frameBytesMax: number
  readonly heartbeatMs: number
  readonly messageBytesMax: number
  readonly inFlightBatchesMax: number
  readonly inFlightBytesMax: number
  /**
   * Number of times that the broker has started with this data directory. Subscription ids are valid within one boot.
   */
  readonly boot: number
  readonly durability: number
  readonly serverVersion: string
}

export interface Auth {
  readonly mechanism: number
  readonly identity: string
  readonly secret: Uint8Array
}

const HELLO_BYTES = 2 + 2 + 4 + 4 + 4 + PRODUCER_IDENTITY_BYTES + 8 + 4 + 1

export function encodeHello(hello: Hello): Uint8Array {
  const name = clipText(hello.name, LIMITS.clientNameBytesMax)
  const bytes = new Uint8Array(HELLO_BYTES + textBytes(name))
  writeU16(bytes, 0, hello.versionMin)
  writeU16(bytes, 2, hello.versionMax)
  writeU32(bytes, 4, hello.features)
  writeU32(bytes, 8, hello.frameBytesMax)
  writeU32(bytes, 12, hello.heartbeatMs)
  bytes.set(hello.producer, 16)
  writeU64(bytes, 32, hello.acceptedNumber)
  writeU32(bytes, 40, hello.inFlightBatchesMax)
  bytes[44] = writeText(bytes, HELLO_BYTES, name)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeHello(bytes: Uint8Array, start: number, end: number): Hello {
  need('HELLO', end - start, HELLO_BYTES)
  const nameEnd = HELLO_BYTES + bytes[start + 44]!
  need('HELLO', end - start, nameEnd)
  const acceptedNumber = readU64(bytes, start + 32)
  if (!Number.isSafeInteger(acceptedNumber)) {
    throw new SluiceError(
      'MALFORMED_FRAME',
      `HELLO has the accepted number ${acceptedNumber}; it must be below 2^53.`,
    )
  }
  return {
    versionMin: readU16(bytes, start),
    versionMax: readU16(bytes, start + 2),
    features: readU32(bytes, start + 4),
    frameBytesMax: readU32(bytes, start + 8),
    heartbeatMs: readU32(bytes, start + 12),
    producer: copyBytes(bytes, start + 16, start + 32),
    acceptedNumber,
    inFlightBatchesMax: readU32(bytes, start + 40),
    // Bytes that are not UTF-8 are replaced by U+FFFD, which takes three bytes, so the text can be too long.
    name: clipText(readText(bytes, start + HELLO_BYTES, start + nameEnd), LIMITS.clientNameBytesMax),
  }
}

const HELLO_OK_BYTES = 36

export function encodeHelloOk(ok: HelloOk): Uint8Array {
  const text = clipText(ok.serverVersion, 255)
  const bytes = new Uint8Array(HELLO_OK_BYTES + textBytes(text))
  writeU16(bytes, 0, ok.version)
  writeU16(bytes, 2, 0)
  writeU32(bytes, 4, ok.features)
  writeU32(bytes, 8, ok.frameBytesMax)
  writeU32(bytes, 12, ok.heartbeatMs)
  writeU32(bytes, 16, ok.messageBytesMax)
  writeU32(bytes, 20, ok.inFlightBatchesMax)
  writeU32(bytes, 24, ok.inFlightBytesMax)
  writeU32(bytes, 28, ok.boot)
  bytes[32] = ok.durability
  bytes[33] = 0
  bytes[34] = 0
  bytes[35] = writeText(bytes, HELLO_OK_BYTES, text)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeHelloOk(bytes: Uint8Array, start: number, end: number): HelloOk {
  need('HELLO_OK', end - start, HELLO_OK_BYTES)
  const textEnd = HELLO_OK_BYTES + bytes[start + 35]!
  need('HELLO_OK', end - start, textEnd)
  return {
    version: readU16(bytes, start),
    features: readU32(bytes, start + 4),
    frameBytesMax: readU32(bytes, start + 8),
    heartbeatMs: readU32(bytes, start + 12),
    messageBytesMax: readU32(bytes, start + 16),
    inFlightBatchesMax: readU32(bytes, start + 20),
    inFlightBytesMax: readU32(bytes, start + 24),
    boot: readU32(bytes, start + 28),
    durability: bytes[start + 32]!,
    serverVersion: readText(bytes, start + HELLO_OK_BYTES, start + textEnd),
  }
}

/**
 * Layout: u8 mechanism · u8 identity length · identity · u16 secret length · secret.
 * @throws SluiceError INVALID_ARGUMENT
 */
export function encodeAuth(auth: Auth): Uint8Array {
  const identityBytes = textBytes(auth.identity)
  if (identityBytes > 255) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `The identity has ${identityBytes} bytes; at most 255 are allowed.`,
    )
  }
  if (auth.secret.length > LIMITS.credentialBytesMax) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `The secret has ${auth.secret.length} bytes; at most ${LIMITS.credentialBytesMax} are allowed.`,
    )
  }
  const bytes = new Uint8Array(4 + identityBytes + auth.secret.length)
  bytes[0] = auth.mechanism
  bytes[1] = identityBytes
  writeText(bytes, 2, auth.identity)
  writeU16(bytes, 2 + identityBytes, auth.secret.length)
  bytes.set(auth.secret, 4 + identityBytes)
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeAuth(bytes: Uint8Array, start: number, end: number): Auth {
  need('AUTH', end - start, 4)
  const identityBytes = bytes[start + 1]!
  need('AUTH', end - start, 4 + identityBytes)
  const secretBytes = readU16(bytes, start + 2 + identityBytes)
  if (secretBytes > LIMITS.credentialBytesMax) {
    throw new SluiceError(
      'MALFORMED_FRAME',
      `The secret has ${secretBytes} bytes; at most ${LIMITS.credentialBytesMax} are allowed.`,
    )
  }
  exact('AUTH', end - start, 4 + identityBytes + secretBytes)
  return {
    mechanism: bytes[start]!,
    identity: readText(bytes, start + 2, start + 2 + identityBytes),
    secret: copyBytes(bytes, start + 4 + identityBytes, end),
  }
}

/** The content of ERROR, and of PUBLISH_ERR after its number. */
export interface Fault {
  readonly code: ErrorCode
  readonly scope: ErrorScope
  readonly retryable: boolean
  readonly retryAfterMs: number
  readonly message: string
}

const SCOPES = ['request', 'channel', 'connection'] as const
const FAULT_BYTES = 10

/** Layout: u16 code · u8 scope (0 request, 1 channel, 2 connection) · u8 retryable · u32 retry after, ms · u16 length · text. */
export function encodeFault(fault: Fault): Uint8Array {
  const text = clipText(fault.message, LIMITS.reasonBytesMax)
  const bytes = new Uint8Array(FAULT_BYTES + textBytes(text))
  writeU16(bytes, 0, ERRORS[fault.code].number)
  bytes[2] = SCOPES.indexOf(fault.scope)
  bytes[3] = fault.retryable ? 1 : 0
  writeU32(bytes, 4, fault.retryAfterMs)
  writeU16(bytes, 8, writeText(bytes, FAULT_BYTES, text))
  return bytes
}

/**
 * A code that this version does not know becomes NOT_SUPPORTED with the sender's own scope and text.
 * @throws SluiceError MALFORMED_FRAME
 */
export function decodeFault(bytes: Uint8Array, start: number, end: number): Fault {
  need('ERROR', end - start, FAULT_BYTES)
  const length = readU16(bytes, start + 8)
  exact('ERROR', end - start, FAULT_BYTES + length)
  const scope = SCOPES[bytes[start + 2]!]
  if (scope === undefined)
    throw new SluiceError('MALFORMED_FRAME', `Error scope ${bytes[start + 2]} is unknown.`)
  return {
    code: errorCode(readU16(bytes, start)) ?? 'NOT_SUPPORTED',
    scope,
    retryable: bytes[start + 3] === 1,
    retryAfterMs: readU32(bytes, start + 4),
    message: readText(bytes, start + FAULT_BYTES, end),
  }
}

/** Makes an error from a fault that the peer sent. */
export function faultError(fault: Fault): SluiceError {
  return new SluiceError(fault.code, fault.message, fault)
}

/**
 * Reason of a GOODBYE. `done`: the sender closes the connection; `stopping`: the broker stops, and clients should
 * reconnect later; `left`: the client will not reconnect.
 */
export const GOODBYE_REASON = { done: 0, stopping: 1, left: 2 } as const

/** Layout: u8 reason · u16 length · text. */
export function encodeGoodbye(reason: number, text: string): Uint8Array {
  const clipped = clipText(text, LIMITS.reasonBytesMax)
  const bytes = new Uint8Array(3 + textBytes(clipped))
  bytes[0] = reason
  writeU16(bytes, 1, writeText(bytes, 3, clipped))
  return bytes
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeGoodbye(
  bytes: Uint8Array,
  start: number,
  end: number,
): { reason: number; text: string } {
  need('GOODBYE', end - start, 3)
  exact('GOODBYE', end - start, 3 + readU16(bytes, start + 1))
  return { reason: bytes[start]!, text: readText(bytes, start + 3, end) }
}

/** @throws SluiceError MALFORMED_FRAME unless at least `bytes` arrived */
export function need(frame: string, got: number, bytes: number): void {
  if (got < bytes)
    throw new SluiceError(
      'MALFORMED_FRAME',
      `${frame} is cut off: ${bytes} bytes are needed, and ${got} are available.`,
    )
}

/** Reads a u64 of a frame. @throws SluiceError MALFORMED_FRAME unless the number is below 2^53 */
export function u64(frame: string, bytes: Uint8Array, at: number): number {
  return exactNumber(frame, readU64(bytes, at))
}

/** Returns `value`, which was read as a u64. @throws SluiceError MALFORMED_FRAME unless it is below 2^53 */
export function exactNumber(frame: string, value: number): number {
  if (!Number.isSafeInteger(value))
    throw new SluiceError('MALFORMED_FRAME', `${frame} has the number ${value}; it must be below 2^53.`)
  return value
}

/** @throws SluiceError MALFORMED_FRAME unless exactly `bytes` arrived */
export function exact(frame: string, got: number, bytes: number): void {
  if (got !== bytes)
    throw new SluiceError('MALFORMED_FRAME', `${frame} has ${got} bytes; it must have ${bytes}.`)
}
