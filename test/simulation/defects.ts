/**
 * Planted bugs: each changes a part of a world, and the simulation must find each of them. A simulation that does not
 * find planted bugs proves nothing when it finds no others.
 */
import {
  BATCH_TYPE,
  DELIVER_FLAG,
  FRAME_HEADER_BYTES,
  OP,
  batchCount,
  batchLength,
  batchType,
  crc32,
  firstRecordAt,
  indexOfSlot,
  isSparse,
  presentCount,
  readU32,
  readU64,
  writeRecordsCrc,
  writeU16,
} from '@sluice/protocol'
import { Producer as BrokerProducer } from '../../packages/server/src/state/producers.js'
import { Tail } from '../../packages/server/src/log/tail.js'
import { Turn } from '../../packages/server/src/broker/turn.js'
import { Writer } from '../../packages/server/src/broker/writer.js'
import { ENTRY_HEADER_BYTES, readEntryHeader, sealEntry } from '../../packages/server/src/log/entry.js'
import { FileLog } from '../../packages/server/src/log/file-log.js'
import type { Disk, DiskFile, Log } from '../../packages/server/src/log/log.js'
import { segmentName } from '../../packages/server/src/log/segment.js'
import {
  Admission,
  Chunk,
  FACT,
  FactBuffer,
  IdWindow,
  Queue,
  Subscription,
} from '../../packages/server/src/queue/index.js'
import { Chunks } from '../../packages/server/src/queue/chunks.js'
import { FormerLeases } from '../../packages/server/src/queue/former.js'
import { KeyLines } from '../../packages/server/src/queue/key-lines.js'
import { Keys } from '../../packages/server/src/queue/keys.js'
import type { Transport } from '../../packages/server/src/net/peer.js'
import type { Defect } from './defect.js'
import type { SimulatedDisk } from './disk.js'

// ------------------------------------------------------------------------------------------------------ the disk

/** A disk with some methods replaced, its own or those of its files. */
function otherDisk(
  disk: Disk,
  change: Partial<Disk>,
  file: (file: DiskFile, durable: boolean) => Partial<DiskFile> = () => ({}),
): Disk {
  return {
    list: () => disk.list(),
    open: async (name, options) => {
      const opened = await disk.open(name, options)
      const other: DiskFile = {
        get bytes() {
          return opened.bytes
        },
        read: (position, length, into) => opened.read(position, length, into),
        write: (position, bytes) => opened.write(position, bytes),
        sync: () => opened.sync(),
        close: () => opened.close(),
      }
      return Object.assign(other, file(opened, options.durable === true))
    },
    rename: (from, to) => disk.rename(from, to),
    remove: (name) => disk.remove(name),
    syncDirectory: () => disk.syncDirectory(),
    space: () => disk.space(),
    ...change,
  }
}

const isNames = (name: string): boolean => name.endsWith('.segment')

// ------------------------------------------------------------------------------------------------------- the log

/** A log with some methods replaced. */
export function otherLog(log: Log, change: Partial<Log>): Log {
  return {
    get segmentBytes() {
      return log.segmentBytes
    },
    get entryBytesMax() {
      return log.entryBytesMax
    },
    open: () => log.open(),
    read: (position) => log.read(position),
    hasRoomFor: (bytes, nowMs) => log.hasRoomFor(bytes, nowMs),
    room: () => log.room(),
    stuck: () => log.stuck(),
    append: (position, lsn, entry) => log.append(position, lsn, entry),
    readRange: (position, length, into) => log.readRange(position, length, into),
    markCheckpoint: (position) => log.markCheckpoint(position),
    truncateBefore: (position) => log.truncateBefore(position),
    usage: () => log.usage(),
    close: () => log.close(),
    ...change,
  }
}

/** The end of the log on this disk; the disk is not changed. */
async function endOf(
  disk: SimulatedDisk,
): Promise<{ log: FileLog; bounds: Awaited<ReturnType<FileLog['open']>>; copy: SimulatedDisk } | undefined> {
  if (disk.names().length === 0) return undefined
  const copy = disk.clone({})
  const log = new FileLog({
    disk: copy,
    segmentBytes: 16 * 1024,
    lowFreeBytes: 0,
    now: () => 0,
    random32: () => 0,
    sleep: () => new Promise(() => {}),
  })
  return { log, bounds: await log.open(), copy }
}

async function lastEntry(disk: SimulatedDisk): Promise<
  | {
      log: FileLog
      position: number
      bytes: Uint8Array
      nextPosition: number
      lastCrc: number
      nextLsn: number
      salt: number
    }
  | undefined
> {
  const end = await endOf(disk)
  if (end === undefined) return undefined
  let last: { position: number; bytes: Uint8Array } | undefined
  for await (const { position, bytes } of end.log.read(end.bounds.firstPosition))
    last = { position, bytes: bytes.slice() }
  return last === undefined ? undefined : { log: end.log, ...last, ...end.bounds }
}

function damageAt(disk: SimulatedDisk, segmentBytes: number, position: number, bytes: Uint8Array): void {
  disk.damage(segmentName(Math.floor(position / segmentBytes)), position % segmentBytes, bytes)
}

// --------------------------------------------------------------------------------------------------- the sessions

/** Replaces each frame that the broker writes with the frames that `change` returns for it. */
function otherFrames(
  transport: Transport,
  change: (opcode: number, frame: Uint8Array) => Uint8Array[],
): Transport {
  return {
    get address() {
      return transport.address
    },
    pause: () => transport.pause(),
    resume: () => transport.resume(),
    end: () => transport.end(),
    write: (bytes, written) => {
      const parts: Uint8Array[] = []
      // The outbox never splits a frame; only the greeting can precede the first frame.
      let at = bytes[0] === 0x53 && bytes[1] === 0x4c && bytes[2] === 0x43 && bytes[3] === 0x45 ? 8 : 0
      parts.push(bytes.subarray(0, at))
      while (at < bytes.length) {
        const end = at + FRAME_HEADER_BYTES + readU32(bytes, at)
        parts.push(...change(bytes[at + 4]!, bytes.slice(at, end)))
        at = end
      }
      transport.write(new Uint8Array(Buffer.concat(parts)), written)
    },
  }
}

/** Replaces methods of a class until they are restored; `change` receives the original ones. */
export function replaced<Class extends object>(
  prototype: Class,
  change: (before: Readonly<Class>) => Partial<Class>,
): () => void {
  // An object with the current methods only.
  const before = Object.defineProperties({}, Object.getOwnPropertyDescriptors(prototype)) as Class
  const methods = change(before)
  Object.assign(prototype, methods)
  return () => {
    for (const name of Object.keys(methods) as (keyof Class)[]) prototype[name] = before[name]
  }
}

// Adds 1 to each index of a sparse batch, unless the last index would be too high.
function shiftIndexes(bytes: Uint8Array, at: number): void {
  const present = presentCount(bytes, at)
  const indexesAt = firstRecordAt(bytes, at) - 2 * present
  if (indexOfSlot(bytes, at, present - 1) + 1 === batchCount(bytes, at)) return
  for (let slot = 0; slot < present; slot++)
    writeU16(bytes, indexesAt + 2 * slot, indexOfSlot(bytes, at, slot) + 1)
  writeRecordsCrc(bytes, at, 0)
  const end = at + batchLength(bytes, at)
  writeRecordsCrc(bytes, at, crc32(bytes, at, end))
}

export const DEFECTS: readonly Defect[] = [
  {
    name: 'an append resolves before it is written',
    log: (log) =>
      otherLog(log, {
        append: (position, lsn, entry) => {
          void log.append(position, lsn, entry).catch(() => {})
          return Promise.resolve()
        },
      }),
  },
  {
    name: 'a write is reported as durable while it is only in memory',
    disk: (disk) =>
      otherDisk(disk, { open: (name, options) => disk.open(name, { ...options, durable: false }) }),
  },
  {
    name: 'the directory is never synced',
    disk: (disk) => otherDisk(disk, { syncDirectory: () => Promise.resolve() }),
  },
  {
    name: 'a short write is reported as a whole one',
    disk: (disk) =>
      otherDisk(disk, {}, (file, durable) =>
        durable && isNames('x.segment')
          ? {
              write: (position, bytes) =>
                file.write(position, bytes.length > 2048 ? bytes.subarray(0, bytes.length - 1024) : bytes),
            }
          : {},
      ),
  },
  {
    name: 'the last sector of a write is dropped',
    disk: (disk) =>
      otherDisk(disk, {}, (file, durable) =>
        durable
          ? {
              write: (position, bytes) =>
                file.write(position, bytes.length > 512 ? bytes.subarray(0, bytes.length - 512) : bytes),
            }
          : {},
      ),
  },
  {
    name: 'a failed write is reported as a success',
    disk: (disk) =>
      otherDisk(disk, {}, (file) => ({
        write: (position, bytes) => file.write(position, bytes).catch(() => {}),
      })),
  },
  {
    name: 'the newest entry is lost when the broker starts',
    beforeOpen: async (disk) => {
      const last = await lastEntry(disk)
      if (last !== undefined)
        damageAt(disk, last.log.segmentBytes, last.position, new Uint8Array(last.bytes.length))
    },
  },
  {
    name: 'bytes of an earlier run of the broker are read as the next entry',
    beforeOpen: async (disk) => {
      const last = await lastEntry(disk)
      if (last === undefined) return
      // Imitates a log that checks only the layout of an entry: an old entry is put behind the newest.
      const stale = last.bytes.slice()
      const { length, epoch, timeMs, batches } = readEntryHeader(stale, 0)
      const { segmentBytes } = last.log
      if (length <= ENTRY_HEADER_BYTES || (last.nextPosition % segmentBytes) + stale.length > segmentBytes)
        return
      sealEntry(stale, 0, length, {
        lsn: last.nextLsn,
        position: last.nextPosition,
        epoch,
        previousCrc: last.lastCrc,
        timeMs,
        salt: last.salt,
        batches,
      })
      damageAt(disk, segmentBytes, last.nextPosition, stale)
    },
  },
  {
    name: 'a segment is recycled too early',
    log: (log) =>
      otherLog(log, { truncateBefore: (position) => log.truncateBefore(position + log.segmentBytes) }),
  },
  {
    name: 'answers do not wait for the disk',
    session: (session) => {
      const endTurn = session.endTurn.bind(session)
      session.endTurn = () => endTurn(0)
    },
  },
  {
    name: 'bytes are sent twice',
    transport: (transport) =>
      otherFrames(transport, (opcode, frame) => (opcode === OP.PUBLISH_OK ? [frame, frame] : [frame])),
  },
  {
    name: 'a delivery is sent twice, beyond the credit',
    transport: (transport) =>
      otherFrames(transport, (opcode, frame) => (opcode === OP.DELIVER ? [frame, frame] : [frame])),
  },
  {
    name: 'the redelivered mark is lost on the way',
    transport: (transport) =>
      otherFrames(transport, (opcode, frame) => {
        if (opcode === OP.DELIVER) frame[FRAME_HEADER_BYTES + 30]! &= ~DELIVER_FLAG.redelivered
        return [frame]
      }),
  },
  {
    name: 'a byte of a message is changed on the way',
    transport: (transport) =>
      otherFrames(transport, (opcode, frame) => {
        if (opcode === OP.DELIVER) frame[frame.length - 1] = frame[frame.length - 1]! ^ 4
        return [frame]
      }),
  },
  {
    name: 'an ack is confirmed and not applied',
    install: () =>
      replaced(Queue.prototype, () => ({
        ack(this: Queue, offset, count, nowMs) {
          for (let i = 0; i < count; i++) this.release(offset + i, -1, nowMs)
        },
      })),
  },
  {
    name: 'a settle of another consumer is not reported as stale',
    install: () =>
      replaced<Subscription>(Subscription.prototype, (before) => ({
        ack(this: Subscription, firstTag, count, nowMs) {
          before.ack.call(this, firstTag, count, nowMs)
        },
      })),
  },
  {
    name: 'a released message goes to the end of the line',
    install: () =>
      replaced(Queue.prototype, (before) => ({
        release(this: Queue, offset, _sinceMs, nowMs) {
          before.release.call(this, offset, nowMs, nowMs)
        },
      })),
  },
  {
    name: 'a retry is not charged',
    install: () => replaced(Queue.prototype, () => ({ attemptsOf: () => 0 })),
  },
  {
    name: 'a scheduled message is ready too early',
    install: () =>
      replaced(Queue.prototype, (before) => ({
        advance(this: Queue, nowMs) {
          return before.advance.call(this, nowMs + 400)
        },
      })),
  },
  {
    name: 'the timer is lost',
    install: () =>
      replaced(Turn.prototype, () => ({
        tick(this: Turn) {
          this.begin()
          this.wake()
        },
      })),
  },
  {
    name: 'new credit does not start deliveries',
    install: () =>
      replaced<Subscription>(Subscription.prototype, (before) => ({
        setCredit(this: Subscription, messages, bytes, limit, drain) {
          before.setCredit.call(this, messages, bytes, limit, drain)
          const { queue } = this
          if (queue.active) return
          // Until the microtask runs, the queue claims to be already in the list of queues that may have something to
          // deliver.
          queue.active = true
          queueMicrotask(() => (queue.active = false))
        },
      })),
  },
  {
    name: 'one message more than the credit is delivered',
    install: () =>
      replaced<Subscription>(Subscription.prototype, (before) => ({
        setCredit(this: Subscription, messages, bytes, limit, drain) {
          before.setCredit.call(this, messages + 1, bytes, limit, drain)
        },
      })),
  },
  {
    name: 'a producer is unknown after a restart',
    install: () =>
      replaced(BrokerProducer.prototype, (before) => ({
        resultOf(this: BrokerProducer, number, crc, unanswered) {
          const isForgotten = this.highest >= number && number < 4
          return isForgotten ? undefined : before.resultOf.call(this, number, crc, unanswered)
        },
      })),
  },
  {
    name: 'a purge ignores leased messages',
    // Only a purge collects all leases of a queue in order to end them.
    install: () =>
      replaced<Subscription>(Subscription.prototype, () => ({ *held(): IterableIterator<never> {} })),
  },
  {
    name: 'an atomic step is split over two entries',
    install: () =>
      replaced(Writer.prototype, (before) => ({
        writeMessages(this: Writer, bytes, at, end, queue, producerId, attributes) {
          const position = before.writeMessages.call(this, bytes, at, end, queue, producerId, attributes)
          const isOfStep = producerId === 0 && readU64(bytes, at + 24) > 0
          if (isOfStep) this.tail.seal(this.turn.nowMs)
          return position
        },
      })),
  },
  {
    name: 'the acks of an atomic step are written in the next entry',
    install: () => {
      const restore = [
        // The facts of the step stay with their queue until the end of the turn.
        replaced(FactBuffer.prototype, () => ({ take: () => new FactBuffer() })),
        replaced(Writer.prototype, (before) => ({
          writeFacts(this: Writer, queueId, buffer) {
            const isStep = !buffer.isEmpty && buffer.bytes[0] === FACT.atomic
            before.writeFacts.call(this, queueId, buffer)
            if (isStep) this.tail.seal(this.turn.nowMs)
          },
        })),
      ]
      return () => {
        for (const one of restore) one()
      }
    },
  },
  {
    name: 'the fact of a duplicate is written after its batch',
    install: () => {
      const kept = new Map<number, FactBuffer>()
      return replaced(Writer.prototype, (before) => ({
        writeFacts(this: Writer, queueId, buffer) {
          const isDuplicate = !buffer.isEmpty && buffer.bytes[0] === FACT.duplicate
          if (isDuplicate) kept.set(queueId, buffer.take())
          else before.writeFacts.call(this, queueId, buffer)
        },
        writeMessages(this: Writer, bytes, at, end, queue, producerId, attributes) {
          const position = before.writeMessages.call(this, bytes, at, end, queue, producerId, attributes)
          const behind = kept.get(queue.id)
          kept.delete(queue.id)
          if (behind !== undefined) before.writeFacts.call(this, queue.id, behind)
          return position
        },
      }))
    },
  },
  {
    name: 'a retried message goes behind the others of its key',
    install: () =>
      replaced(KeyLines.prototype, () => ({
        insert(this: KeyLines, slot, chunk, index) {
          this.append(slot, chunk, index)
        },
      })),
  },
  {
    name: 'one message too many of a key is leased',
    install: () =>
      replaced(Keys.prototype, (before) => ({
        leasedOf(this: Keys, slot) {
          return Math.max(0, before.leasedOf.call(this, slot) - 1)
        },
      })),
  },
  {
    name: 'a key does not remember since when it has been free',
    install: () =>
      replaced(Keys.prototype, () => ({
        freeAt(this: Keys, slot) {
          this.withdraw(slot)
        },
      })),
  },
  {
    name: 'an expired message that is left keeps its id',
    install: () => replaced(Queue.prototype, () => ({ removeIfExpired: () => false })),
  },
  {
    name: 'a batch that follows a refused one is decided by itself',
    install: () => replaced(BrokerProducer.prototype, () => ({ wasRefused: () => false })),
  },
  {
    name: 'the fact that a message replaces another is not written',
    install: () => replaced(FactBuffer.prototype, () => ({ replace: () => {} })),
  },
  {
    name: 'a replaced message remains',
    install: () => replaced(Admission.prototype, () => ({ replace: () => {} })),
  },
  {
    name: 'a leased message is replaced',
    install: () =>
      replaced(Queue.prototype, (before) => ({
        stateAt(this: Queue, offset, nowMs) {
          const state = before.stateAt.call(this, offset, nowMs)
          return state === 'leased' ? 'ready' : state
        },
      })),
  },
  {
    name: 'ids are forgotten at a checkpoint',
    install: () =>
      replaced(IdWindow.prototype, () => ({
        *pagesToWrite(): IterableIterator<number> {},
      })),
  },
  {
    name: 'a dead letter is copied and stays in its old queue',
    install: () => replaced(FactBuffer.prototype, () => ({ move: () => {} })),
  },
  {
    name: 'a dead letter leaves its old queue and is in the new one until the restart',
    install: () => replaced(Queue.prototype, () => ({ moved: () => {} })),
  },
  {
    name: 'a release is charged',
    install: () =>
      replaced(Queue.prototype, () => ({
        release(this: Queue, offset, _sinceMs, nowMs) {
          this.retry(offset, nowMs, nowMs, '')
        },
      })),
  },
  {
    name: 'a lease can be claimed after a later lease of its message',
    install: () => replaced(FormerLeases.prototype, () => ({ delete: () => {} })),
  },
  {
    name: 'a message that another consumer holds is granted to a claim',
    install: () =>
      replaced(Queue.prototype, (before) => ({
        reclaim(this: Queue, claim, boot, nowMs, client) {
          const { offset } = claim
          if (this.stateOf(offset) !== 'leased') return before.reclaim.call(this, claim, boot, nowMs, client)
          return {
            ...{ sinceMs: -1, attempt: this.attemptsOf(offset) + 1, deadlineMs: Infinity },
            ...{ isCharged: false, bytes: this.claimBytes(offset) },
          }
        },
      })),
  },
  {
    name: 'a restart forgets that a subscription ended',
    install: () => replaced(FactBuffer.prototype, () => ({ ended: () => {} })),
  },
  {
    name: 'priorities are ignored',
    install: () => replaced(Chunk.prototype, () => ({ setPriority: () => {} })),
  },
  {
    name: 'only the first message of a batch counts as live',
    install: () =>
      replaced(Chunk.prototype, () => ({
        isGoneHere(this: Chunk, batch) {
          return this.isGone(this.batches.first(batch))
        },
      })),
  },
  {
    name: 'a sparse copy lacks a message that is left',
    install: () =>
      replaced(Chunks.prototype, (before) => ({
        neededIndexesAt(this: Chunks, offset, count, position) {
          return before.neededIndexesAt.call(this, offset, count, position).slice(0, -1)
        },
      })),
  },
  {
    name: 'the indexes of a sparse copy are one too high',
    install: () => {
      let start = 0
      return replaced(Tail.prototype, (before) => ({
        reserve(this: Tail, length, nowMs) {
          return (start = before.reserve.call(this, length, nowMs))
        },
        add(this: Tail, length) {
          const { bytes } = this
          if (batchType(bytes, start) === BATCH_TYPE.messages && isSparse(bytes, start))
            shiftIndexes(bytes, start)
          return before.add.call(this, length)
        },
      }))
    },
  },
  {
    name: 'a batch counts as large as before it was copied',
    install: () =>
      replaced(Chunk.prototype, (before) => ({
        relocate(this: Chunk, batch, position, _bytes, scale) {
          before.relocate.call(this, batch, position, this.batches.bytes(batch), scale)
        },
      })),
  },
  {
    name: 'an empty entry is written every second at rest',
    install: () => {
      const sealedMs = new WeakMap<Tail, number>()
      return replaced(Tail.prototype, (before) => ({
        flush(this: Tail, nowMs) {
          before.flush.call(this, nowMs)
          if (!this.isIdle || nowMs < (sealedMs.get(this) ?? 0) + 1_000) return
          sealedMs.set(this, nowMs)
          this.sealEmpty(nowMs)
        },
      }))
    },
  },
]
