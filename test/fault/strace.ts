/**
 * Reads a trace of a broker by strace: the durable writes, the frames that the broker sent, and their order.
 *
 * The order is that of the lines. strace prints one line when a call starts and another when it ends, or a single line
 * if no other event of the process came in between. So if the line on which a call ends precedes the line on which a
 * socket write starts, the call had completed before that write. The layout of log entries is repeated here, so that a
 * mistake in the broker's own reader cannot hide.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  FrameDecoder,
  LIMITS,
  OP,
  batchIsIntact,
  decodeDeliverHead,
  decodePublishOk,
  readBatchHeader,
  readU32,
} from '@sluice/protocol'
import { spawnSync } from 'node:child_process'
import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'

/** The reason why strace cannot be used here; undefined if it can. */
export function straceIsMissing(): string | undefined {
  const tried = spawnSync(
    'strace',
    ['-f', '--seccomp-bpf', '-D', '-e', 'trace=write', '-o', '/dev/null', 'true'],
    {
      timeout: 10_000,
    },
  )
  if (tried.error !== undefined) return 'strace is not installed'
  if (tried.status !== 0) return 'strace may not trace here'
  return undefined
}

/** The command that runs the broker under strace. The broker stays a direct child, and strace ends with it. */
export function traced(file: string, injections: readonly string[] = []): string[] {
  return [
    'strace',
    '-D',
    '-f',
    '--seccomp-bpf',
    '-ttt',
    ...['-e', 'trace=openat,close,accept4,pwrite64,write,writev,sendmsg'],
    ...injections.flatMap((injection) => ['-e', `inject=${injection}`]),
    '-xx',
    ...['-s', String(8 << 20)],
    ...['-o', file],
  ]
}

export interface Sighting {
  /** What the frame does: it confirms a batch at an offset, or delivers an offset. */
  readonly what: string
  readonly why: string
}

export interface TraceReport {
  /**
   * Number of writes to segment files that were opened for durable writes, and number of batches of messages in those
   * writes.
   */
  readonly durableWrites: number
  readonly durableBatches: number
  /** Number of socket writes with at least one confirm or delivery. */
  readonly socketWrites: number
  readonly confirms: number
  readonly deliveries: number
  readonly violations: readonly Sighting[]
  /**
   * The first write that was made to fail: whether it was to a file opened for durable writes, and its time in seconds
   * since the epoch.
   */
  readonly failure: { readonly durable: boolean; readonly atS: number } | undefined
}

interface Call {
  readonly name: string
  /** The text between the parentheses of the call. */
  text: string
  readonly beganAt: number
}

interface Stream {
  readonly decoder: FrameDecoder
  /** Start of the write that contains the first byte of the frame being decoded. */
  writeBeganAt: number
  frameBeganAt: number | undefined
}

const ENTRY_HEADER_BYTES = 64
const ENTRY_MAGIC = 0x4e_45_4c_53
const SEGMENT_HEADER_BYTES = 4096

/** Reads a trace of one broker with one queue, in which base offsets are therefore unique. */
export async function readTrace(path: string): Promise<TraceReport> {
  const violations: Sighting[] = []
  const durableFiles = new Set<number>()
  const streams = new Map<number, Stream>()
  const unfinished = new Map<string, Call>()
  /**
   * For each durable batch, by its base offset: the line on which its write completed, the number of the batch, and the
   * offset after its last message.
   */
  const durableBatches = new Map<
    number,
    { readonly at: number; readonly number: number; readonly end: number }
  >()
  const durableOffsets: number[] = []
  let line = 0
  let durableWrites = 0
  let socketWrites = 0
  let confirms = 0
  let deliveries = 0
  let failure: TraceReport['failure']
  let failedAt = Infinity

  const sawFrame = (stream: Stream, opcode: number, bytes: Uint8Array, start: number, end: number): void => {
    const beganAt = stream.frameBeganAt ?? stream.writeBeganAt
    stream.frameBeganAt = undefined
    if (opcode === OP.PUBLISH_OK) {
      decodePublishOk(bytes, start, end, (number, base) => {
        confirms++
        const what = `confirm of batch ${number} at offset ${base}`
        const batch = durableBatches.get(base)
        if (batch === undefined || batch.at >= beganAt)
          violations.push({ what, why: 'its batch was not yet on disk' })
        else if (batch.number !== number) violations.push({ what, why: `batch ${batch.number} is there` })
        if (beganAt > failedAt) violations.push({ what, why: 'it left after a write had failed' })
      })
    } else if (opcode === OP.DELIVER) {
      const { firstOffset, count } = decodeDeliverHead(bytes, start, end)
      deliveries += count
      for (let offset = firstOffset; offset < firstOffset + count; offset++) {
        const at = durableOffsets[offset]
        if (at === undefined || at >= beganAt) {
          violations.push({ what: `delivery of offset ${offset}`, why: 'it was not yet on disk' })
        }
      }
    }
  }

  const sawDurable = (bytes: Uint8Array, position: number): void => {
    durableWrites++
    let at = position === 0 && readU32(bytes, 0) !== ENTRY_MAGIC ? SEGMENT_HEADER_BYTES : 0
    if (bytes.length - at < ENTRY_HEADER_BYTES || readU32(bytes, at) !== ENTRY_MAGIC) return
    const end = at + readU32(bytes, at + 4)
    let left = readU32(bytes, at + 32)
    for (at += ENTRY_HEADER_BYTES; at < end; left--) {
      const header = readBatchHeader(bytes, at)
      if (!batchIsIntact(bytes, at, at + header.length))
        throw new Error(`line ${line}: a batch of the entry is not intact`)
      // A relocated batch was already durable.
      if (header.type === BATCH_TYPE.messages && !durableBatches.has(header.baseOffset)) {
        durableBatches.set(header.baseOffset, {
          at: line,
          number: header.batchNumber,
          end: header.baseOffset + header.count,
        })
        for (let i = 0; i < header.count; i++) durableOffsets[header.baseOffset + i] = line
      }
      if (header.length < BATCH_HEADER_BYTES)
        throw new Error(`line ${line}: a batch of ${header.length} bytes`)
      at += header.length
    }
    if (left !== 0)
      throw new Error(`line ${line}: the entry has ${left} batches more or fewer than its header says`)
  }

  const ended = (call: Call, result: string, atS: number): void => {
    const { name, text } = call
    const returned = Number(/^-?\d+/.exec(result)?.[0] ?? Number.NaN)
    const descriptor = Number(/^\d+/.exec(text)?.[0] ?? -1)
    if (result.includes('(INJECTED)') && failure === undefined) {
      failure = { durable: durableFiles.has(descriptor), atS }
      failedAt = line
      return
    }
    if (name === 'openat') {
      if (returned >= 0 && text.includes('O_DSYNC')) durableFiles.add(returned)
    } else if (name === 'close') {
      durableFiles.delete(descriptor)
      streams.delete(descriptor)
    } else if (name === 'accept4') {
      if (returned < 0) return
      const stream: Stream = {
        writeBeganAt: 0,
        frameBeganAt: undefined,
        decoder: new FrameDecoder((opcode, _flags, _channel, _correlation, bytes, start, end) =>
          sawFrame(stream, opcode, bytes, start, end),
        ),
      }
      stream.decoder.frameBytesMax = LIMITS.frameBytesMax
      streams.set(returned, stream)
    } else if (returned > 0) {
      if (name === 'pwrite64') {
        if (durableFiles.has(descriptor))
          sawDurable(textBytes(text).subarray(0, returned), Number(/(\d+)$/.exec(text)?.[1]))
        return
      }
      const stream = streams.get(descriptor)
      if (stream === undefined) return
      const seen = confirms + deliveries
      stream.writeBeganAt = call.beganAt
      const bytes = textBytes(text).subarray(0, returned)
      stream.decoder.push(bytes)
      // The remaining bytes are the beginning of a frame that ends with a later write.
      if (stream.decoder.heldBytes > 0) stream.frameBeganAt ??= call.beganAt
      if (confirms + deliveries > seen) socketWrites++
    }
  }

  for await (const printed of createInterface({ input: createReadStream(path, { encoding: 'latin1' }) })) {
    line++
    const head = /^(\d+) +(\d+\.\d+) (.*)$/s.exec(printed)
    if (head === null) continue
    const [, pid, time, rest] = head as unknown as [string, string, string, string]
    const resumed = /^<\.\.\. (\w+) resumed>(.*)$/s.exec(rest)
    let call: Call | undefined
    let tail: string
    if (resumed !== null) {
      call = unfinished.get(pid)
      unfinished.delete(pid)
      if (call === undefined) continue
      tail = resumed[2]!
    } else {
      const began = /^(\w+)\((.*)$/s.exec(rest)
      if (began === null) continue
      call = { name: began[1]!, text: '', beganAt: line }
      tail = began[2]!
    }
    if (tail.endsWith('<unfinished ...>')) {
      call.text += tail.slice(0, -'<unfinished ...>'.length)
      unfinished.set(pid, call)
      continue
    }
    const at = tail.lastIndexOf(') = ')
    const last = at === -1 ? /^(.*)\) += (.*)$/s.exec(tail) : undefined
    const args = last === undefined ? tail.slice(0, at) : (last?.[1] ?? tail)
    call.text += args
    ended(call, last === undefined ? tail.slice(at + 4) : (last?.[2] ?? ''), Number(time))
  }
  return {
    durableWrites,
    durableBatches: durableBatches.size,
    socketWrites,
    confirms,
    deliveries,
    violations,
    failure,
  }
}

/** The bytes of all strings in the arguments of a call, concatenated. */
function textBytes(text: string): Uint8Array {
  if (text.includes('"...')) throw new Error('strace truncated a string')
  const parts: Buffer[] = []
  for (const [, hex] of text.matchAll(/"((?:\\x[0-9a-f]{2})*)"/g))
    parts.push(Buffer.from(hex!.replaceAll('\\x', ''), 'hex'))
  return Buffer.concat(parts)
}
