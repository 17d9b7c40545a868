/**
 * What a record asks for beside being delivered, and the copy of it that goes to another queue, by plain reading of the
 * documented layouts. The model and the ledger rest on it; it shares no code with the broker.
 */

/** Times in ms; an absent one is undefined. */
export interface Wishes {
  readonly priority: number
  readonly contentType: number
  readonly delayMs: number | undefined
  readonly atMs: number | undefined
  readonly ttlMs: number | undefined
  readonly key: string | undefined
  readonly id: string | undefined
  /** It takes the place of a message with its id that waits. */
  readonly replaces: boolean
  readonly headers: readonly (readonly [string, string])[]
  readonly payload: Uint8Array
}

const FLAG = { delay: 1, at: 2, ttl: 4, key: 8, id: 16, headers: 32, replaces: 128 } as const
const HEAD_BYTES = 8

export function wishesOf(record: Uint8Array): Wishes {
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

/** When a message that is published at `timeMs` is due; undefined: at once. */
export function dueMsOf({ delayMs, atMs }: Wishes, timeMs: number): number | undefined {
  if (delayMs !== undefined && delayMs > 0) return timeMs + delayMs
  return atMs !== undefined && atMs > timeMs ? atMs : undefined
}

/** Why a message is dead, by number. */
export const DEATHS = ['', 'rejected', 'maxDeliveries', 'overflow', 'invalid'] as const
export const OVERFLOW = 3

/** Where a copied message comes from. */
export interface Origin {
  readonly queue: string
  readonly offset: number
  readonly publishedMs: number
  /** In all its lives. */
  readonly attempts: number
  /** How often it was brought back, here and, if it is brought back now, by this. */
  readonly redrives: number
  readonly death: number
  readonly diedMs: number
  readonly reason: string
}

const ORIGIN = 'sluice-origin-'
const ADDED = new Set([
  `${ORIGIN}queue`,
  `${ORIGIN}offset`,
  `${ORIGIN}published`,
  'sluice-redrives',
  'sluice-attempts',
  'sluice-dead-reason',
  'sluice-dead-at',
  'sluice-dead-error',
])

/** How often the message was brought back in queues that it was in before. */
export function redrivesBefore({ headers }: Wishes): number {
  return Number(headers.find(([name]) => name === 'sluice-redrives')?.[1] ?? 0)
}

/**
 * The record that must stand in the other queue: same payload, key, id and priority, without times, with headers that
 * tell where it came from last: they replace those of an earlier move.
 */
export function copyOf(record: Uint8Array, origin: Origin): Uint8Array {
  const wishes = wishesOf(record)
  const { key, id, priority, contentType, payload } = wishes
  const headers = [
    ...wishes.headers.filter(([name]) => !ADDED.has(name)),
    [`${ORIGIN}queue`, origin.queue],
    [`${ORIGIN}offset`, String(origin.offset)],
    [`${ORIGIN}published`, String(origin.publishedMs)],
    ['sluice-redrives', String(origin.redrives)],
    ['sluice-attempts', String(origin.attempts)],
    ['sluice-dead-reason', DEATHS[origin.death]!],
    ['sluice-dead-at', String(origin.diedMs)],
    ['sluice-dead-error', origin.reason],
  ] as const
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
