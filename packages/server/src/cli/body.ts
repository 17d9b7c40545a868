/** Formats bodies as text: the whole body in JSON, or its beginning in a table. */
import { failureOf } from './failure.js'
import { printable } from './output.js'
import { shortened } from './table.js'

/** Fields of a JSON document: the type of the body, and the body. */
export interface BodyFields {
  readonly bodyType: 'text' | 'bytes' | 'data'
  readonly body: unknown
}

export function bodyFields(body: unknown): BodyFields {
  const bodyType = typeof body === 'string' ? 'text' : body instanceof Uint8Array ? 'bytes' : 'data'
  return { bodyType, body: plain(body) }
}

/** Like `bodyFields`, but returns the reason if the body cannot be decoded. */
export function readableFields(message: {
  readonly body: unknown
}): BodyFields | { readonly bodyError: string } {
  try {
    return bodyFields(message.body)
  } catch (error) {
    return { bodyError: failureOf(error).what }
  }
}

/** A body as a line of output: text as is, bytes raw, and data as JSON. */
export function bodyLine(body: unknown): string | Uint8Array {
  if (typeof body === 'string') return `${body}\n`
  if (body instanceof Uint8Array) return Buffer.concat([body, NEWLINE])
  return `${JSON.stringify(plain(body))}\n`
}

const NEWLINE = Buffer.from('\n')

/** A body as a JSON value: bytes as base64, a bigint as its digits, a date as ISO text. */
export function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return value.toString()
  if (typeof value !== 'object' || value === null || value instanceof Date) return value
  if (value instanceof Uint8Array) return base64(value)
  if (Array.isArray(value)) return value.map(plain)
  const object: Record<string, unknown> = Object.create(null) as Record<string, unknown>
  for (const [name, item] of Object.entries(value)) object[name] = plain(item)
  return object
}

export function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64')
}

/** Maximum number of bytes of a binary body that a preview shows. */
const BYTES_SHOWN = 16

/** The beginning of a body, on one line. */
export function preview(message: { readonly body: unknown }, charactersMax: number): string {
  let body: unknown
  try {
    body = message.body
  } catch (error) {
    return shortened(`(${failureOf(error).what})`, charactersMax)
  }
  if (body instanceof Uint8Array) {
    const hex = Buffer.from(body.subarray(0, BYTES_SHOWN)).toString('hex')
    return shortened(`(${body.length} bytes) ${hex}${body.length > BYTES_SHOWN ? '…' : ''}`, charactersMax)
  }
  // The text is truncated first, so that only the part that is shown is made printable.
  const text = typeof body === 'string' ? body : JSON.stringify(plain(body))
  return shortened(printable(shortened(text, charactersMax * 2)), charactersMax)
}
