/**
 * Reads a record by its documented layout, and builds the record of a copy in another queue. Used by the model and the
 * ledger; shares no code with the broker.
 */
import { originHeaders, redrivesElsewhere, type MessageOptions, type Origin } from '../rules/message.js'

/** The content of a record. */
export interface Content extends MessageOptions {
  readonly contentType: number
  readonly headers: readonly (readonly [string, string])[]
  readonly payload: Uint8Array
}

const FLAG = { delay: 1, at: 2, ttl: 4, key: 8, id: 16, headers: 32, replaces: 128 } as const
const HEAD_BYTES = 8

export function contentOf(record: Uint8Array): Content {
  const buffer = Buffer.from(record.buffer, record.byteOffset, record.length)
  const flags = buffer[4]!
  const end = HEAD_BYTES + buffer.readUInt16LE(6)
  let at = HEAD_BYTES
  const time = (flag: number): number | undefined => {
    if ((flags & flag) === 0) return undefined
    at += 6
    return buffer.readUIntLE(at - 6, 6)
  }
  const text = (length: number): string => {
    at += length
    return buffer.toString('utf8', at - length, at)
  }
  const delayMs = time(FLAG.delay)
  const atMs = time(FLAG.at)
  const ttlMs = time(FLAG.ttl)
  const key = flags & FLAG.key ? text(buffer[at++]!) : undefined
  const id = flags & FLAG.id ? text(buffer[at++]!) : undefined
  const headers: [string, string][] = []
  while (flags & FLAG.headers && at < end) {
    const name = text(buffer[at++]!)
    at += 2
    headers.push([name, text(buffer.readUInt16LE(at - 2))])
  }
  return {
    priority: buffer[5]! & 31,
    contentType: buffer[5]! >> 5,
    delayMs,
    atMs,
    ttlMs,
    key,
    id,
    replaces: (flags & FLAG.replaces) !== 0,
    headers,
    payload: record.subarray(end),
  }
}

/** Reasons for which a message is dead, by number. */
export const DEATHS = ['', 'rejected', 'maxDeliveries', 'overflow', 'invalid'] as const
export const OVERFLOW = 3

const ORIGIN_NAMES = new Set(
  originHeaders({
    ...{ queue: '', offset: 0, publishedMs: 0, attempts: 0, redrives: 0 },
    dead: { death: '', diedMs: 0, error: '' },
  }).map(([name]) => name),
)

/** Number of redrives of the message in the queues that it was in before. */
export function redrivesBefore({ headers }: Content): number {
  return redrivesElsewhere(headers.find(([name]) => name === 'sluice-redrives')?.[1])
}

/** The copy for the other queue: same payload, key, id and priority, no times, and headers that name its origin. */
export function copyOf(record: Uint8Array, origin: Origin): Uint8Array {
  const content = contentOf(record)
  const { key, id, priority, contentType, payload } = content
  const headers = [...content.headers.filter(([name]) => !ORIGIN_NAMES.has(name)), ...originHeaders(origin)]
  const options: Buffer[] = []
  for (const text of [key, id]) if (text !== undefined) options.push(short(text))
  for (const [name, value] of headers) {
    const bytes = Buffer.from(value)
    options.push(short(name), Buffer.from([bytes.length & 0xff, bytes.length >> 8]), bytes)
  }
  const optionsBytes = options.reduce((sum, part) => sum + part.length, 0)
  const head = Buffer.alloc(HEAD_BYTES)
  head.writeUInt32LE(HEAD_BYTES + optionsBytes + payload.length, 0)
  head[4] = (key === undefined ? 0 : FLAG.key) | (id === undefined ? 0 : FLAG.id) | FLAG.headers
  head[5] = priority | (contentType << 5)
  head.writeUInt16LE(optionsBytes, 6)
  return new Uint8Array(Buffer.concat([head, ...options, payload]))
}

function short(text: string): Buffer {
  const bytes = Buffer.from(text)
  return Buffer.concat([Buffer.from([bytes.length]), bytes])
}
