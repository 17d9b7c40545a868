/**
 * One broker process: opens the data directory, the log, the broker and the listener in this order, and closes them in
 * reverse order. Called by the command `sluice serve`, and by programs that run a broker themselves.
 */
import { randomInt } from 'node:crypto'
import { MESSAGE_OVERHEAD_BYTES, SluiceError } from '@sluice/protocol'
import { Alarm } from './alarm.js'
import { Broker, type BrokerStatus, type BrokerUsage } from './broker/broker.js'
import { DataDirectory } from './data-directory.js'
import type { Holder } from './state/space.js'
import type { Disk } from './log/log.js'
import { ENTRY_BYTES_MIN } from './log/entry-limits.js'
import { FileLog } from './log/file-log.js'
import { SEGMENT_BYTES_DEFAULT, SEGMENT_HEADER_BYTES } from './log/segment.js'
import {
  MEMORY_BYTES_MIN,
  MemoryGauge,
  PROCESS_METER,
  defaultMemoryBytes,
  sharesOf,
  type MemoryShares,
} from './memory.js'
import { Clock, STEP_MS } from './net/clock.js'
import { connectionsFor, openFilesMax } from './open-files.js'
import { Listener, type ListenerEvent } from './net/listener.js'
import { Session } from './session/session.js'
import { SESSION_DEFAULTS, type SessionSettings } from './session/settings.js'
import { version } from './version.js'

export interface ServerOptions {
  /** Path of the data directory, which is created if it is missing. Default: './data'. */
  readonly dataDir?: string
  /**
   * Whether to take over a data directory on a network file system even if a broker on another machine may be using
   * it.
   */
  readonly forceLock?: boolean
  /** Address to listen on. Default: '127.0.0.1'. */
  readonly host?: string
  /** Port to listen on. With 0 the system chooses a port. Default: 7420. */
  readonly port?: number
  /**
   * Size of a segment of the log, in bytes; at least 132 KiB, so that each page of the state fits in an entry. Default:
   * 64 MiB. An existing log keeps its size. A message may take at most a quarter of a segment.
   */
  readonly segmentBytes?: number
  /** Maximum size of a message, in bytes. Default: 1 MiB. */
  readonly messageBytesMax?: number
  /** Maximum number of connections; at most the limit of open files minus 256 is used. Default: 10,000. */
  readonly connectionsMax?: number
  /**
   * Memory that the process may use, in bytes; at least 192 MiB. When it is full, publishes are refused with MEMORY_FULL.
   * Default: half of the memory of the machine or container.
   */
  readonly memoryBytes?: number
  /**
   * Free space below which publishes are refused, in bytes. Default: 5 % of the disk or 1 GiB, whichever is more, but
   * at most a tenth of the disk and at most 16 GiB.
   */
  readonly lowFreeBytes?: number
  readonly session?: Partial<SessionSettings>
  /** Called with each event that the program should log. */
  readonly onEvent?: (event: string, details: Readonly<Record<string, unknown>>) => void
  /** Called when the broker has failed. The process must then end. All confirmed messages are on disk. */
  readonly onFatal?: (error: unknown) => void
}

export interface RunningServer {
  readonly host: string
  readonly port: number
  readonly dataDir: string
  readonly status: BrokerStatus
  readonly broker: Broker
  /** Returns the current use of memory. */
  memory(): MemoryReport
  /** Returns the use of the disk, and the reason why the oldest segment of the log is kept. Visits every queue. */
  disk(): DiskReport
  /** Milliseconds from the call to `startServer` until connections were accepted. */
  readonly startedMs: number
  /** Stops accepting connections, notifies clients, and closes the broker. Resolves when the broker is closed. */
  stop(): Promise<void>
}

/** Use of memory, in bytes. */
export interface MemoryReport {
  readonly budgetBytes: number
  /** Memory of the runtime, objects and buffers. It includes `logBytes`, `receiveBytes` and `outboundBytes`. */
  readonly usedBytes: number
  /** Whether publishes are refused. */
  readonly isFull: boolean
  /** Blocks of the log in memory: recently written blocks, and blocks that were read back. */
  readonly logBytes: number
  /** Memory for partly received frames. */
  readonly receiveBytes: number
  /** Bytes that clients have not read. */
  readonly outboundBytes: number
}

/**
 * Use of the disk. All values except `segments` are in bytes. `writtenBytes / recordBytes` is the write amplification
 * since the broker started.
 */
export interface DiskReport extends Pick<
  BrokerUsage,
  'liveBytes' | 'logBytes' | 'segments' | 'recordBytes' | 'writtenBytes'
> {
  readonly oldest: Holder
}

/**
 * Interval at which the clock and the use of memory are checked. Between two checks, memory can grow by the bytes
 * that arrive.
 */
const WATCH_MS = 50

const CONNECTIONS_DEFAULT = 10_000

/** Time for which clients can still settle messages after they were notified of the stop. */
const GRACE_MS = 2_000

/** Values that all parts of one server use. */
interface Shared {
  readonly options: ServerOptions
  readonly budgetBytes: number
  readonly shares: MemoryShares
  readonly clock: Clock
  readonly alarm: Alarm
  readonly onEvent: NonNullable<ServerOptions['onEvent']>
  readonly onFatal: (error: unknown) => void
}

/**
 * Starts a broker on a data directory.
 * @throws SluiceError DATA_DIR_LOCKED, LOG_CORRUPT, INVALID_ARGUMENT; or the system's error for the port or directory
 */
export async function startServer(options: ServerOptions = {}): Promise<RunningServer> {
  const begunMs = performance.now()
  checkSegmentBytes(options.segmentBytes)
  const budgetBytes = memoryBudget(options.memoryBytes)
  const clock = new Clock()
  const alarm = new Alarm(() => clock.now())
  let listener: Listener | undefined
  let watching: NodeJS.Timeout | undefined
  const onFatal = (error: unknown): void => {
    listener?.abort()
    alarm.stop()
    clearInterval(watching)
    options.onFatal?.(error)
  }
  const onEvent = options.onEvent ?? ((): void => {})
  const shared = { options, budgetBytes, shares: sharesOf(budgetBytes), clock, alarm, onEvent, onFatal }
  const lock = { force: options.forceLock ?? false, onLost: onFatal }
  const directory = await DataDirectory.open(options.dataDir ?? './data', lock)
  try {
    const broker = await openBroker(directory.disk, shared)
    const outbound = { bytes: 0, bytesMax: shared.shares.outboundBytesMax }
    const listening = newListener(broker, outbound, shared)
    listener = listening
    const address = await listening.listen().catch(async (error: unknown) => {
      await broker.close()
      throw error
    })
    alarm.start(broker.turn)
    const gauge = new MemoryGauge(budgetBytes, PROCESS_METER)
    watching = setInterval(() => watch(broker, gauge, shared), WATCH_MS)
    let stopping: Promise<void> | undefined
    const stop = async (): Promise<void> => {
      await listening.stop(GRACE_MS)
      await broker.close()
      alarm.stop()
      clearInterval(watching)
      await directory.close()
    }
    return {
      host: address.address,
      port: address.port,
      dataDir: directory.path,
      status: broker.status,
      broker,
      memory: () => ({
        budgetBytes,
        usedBytes: gauge.usedBytes,
        isFull: gauge.isFull,
        logBytes: broker.usage().blockBytes,
        receiveBytes: listening.receiveBytes,
        outboundBytes: outbound.bytes,
      }),
      disk: () => diskReport(broker),
      startedMs: performance.now() - begunMs,
      stop: () => (stopping ??= stop()),
    }
  } catch (error) {
    await directory.close()
    throw error
  }
}

// @throws SluiceError INVALID_ARGUMENT
function checkSegmentBytes(bytes = SEGMENT_BYTES_DEFAULT): void {
  const least = ENTRY_BYTES_MIN + SEGMENT_HEADER_BYTES
  if (bytes >= least) return
  throw new SluiceError('INVALID_ARGUMENT', `segmentBytes is ${bytes}; a broker needs at least ${least}.`)
}

// @throws SluiceError INVALID_ARGUMENT
function memoryBudget(bytes = defaultMemoryBytes()): number {
  if (bytes >= MEMORY_BYTES_MIN) return bytes
  throw new SluiceError(
    'INVALID_ARGUMENT',
    `memoryBytes is ${bytes}; a broker needs at least ${MEMORY_BYTES_MIN}.`,
  )
}

function openBroker(
  disk: Disk,
  { options, shares, clock, alarm, onEvent, onFatal }: Shared,
): Promise<Broker> {
  const log = new FileLog({
    disk,
    now: () => clock.now(),
    random32: () => randomInt(2 ** 32),
    onNotice: (notice) => onEvent(`log ${notice.kind}`, { text: notice.text }),
    ...(options.segmentBytes === undefined ? {} : { segmentBytes: options.segmentBytes }),
    ...(options.lowFreeBytes === undefined ? {} : { lowFreeBytes: options.lowFreeBytes }),
  })
  return Broker.open({
    log,
    now: () => clock.now(),
    continueFrom: (timeMs) => {
      const byMs = clock.continueFrom(timeMs)
      if (byMs > STEP_MS) onEvent('clock behind the log', { byMs: Math.round(byMs) })
    },
    random,
    defer: (endTurn) => {
      setImmediate(() => {
        endTurn()
        alarm.arm()
      })
    },
    onFatal,
    onNotice: (event, details) => onEvent(event, { ...details }),
    blocks: shares.blocks,
    pendingBytesMax: shares.pendingBytesMax,
    ...(options.messageBytesMax === undefined ? {} : { messageBytesMax: options.messageBytesMax }),
  })
}

function newListener(
  broker: Broker,
  outbound: SessionSettings['outbound'],
  { options, shares, clock, onEvent }: Shared,
): Listener {
  const filesMax = openFilesMax()
  const wanted = options.connectionsMax ?? CONNECTIONS_DEFAULT
  const connectionsMax = connectionsFor(wanted, filesMax)
  if (connectionsMax < wanted)
    onEvent('connections are limited by open files', { connectionsMax, wanted, openFilesMax: filesMax })
  const messageFrameBytes = broker.messageBytesMax + MESSAGE_OVERHEAD_BYTES
  const settings: SessionSettings = {
    ...SESSION_DEFAULTS,
    frameBytesMax: Math.max(SESSION_DEFAULTS.frameBytesMax, messageFrameBytes),
    serverVersion: version(),
    outbound,
    ...options.session,
  }
  return new Listener(broker.turn, {
    host: options.host ?? '127.0.0.1',
    port: options.port ?? 7420,
    connectionsMax,
    receiveBytesMax: shares.receiveBytesMax,
    newPeer: (transport, nowMs, onClosed) => new Session(broker, transport, settings, nowMs, onClosed),
    now: () => clock.now(),
    onEvent: (event, address, label, error) => onEvent(eventName(event), describe(address, label, error)),
    onFailure: (what, error) => onEvent(what, { error }),
  })
}

// Reacts to a step of the clock, and to memory that has become full or has space again.
function watch(broker: Broker, gauge: MemoryGauge, { budgetBytes, clock, onEvent }: Shared): void {
  const change = clock.look()
  if (change !== undefined) onEvent(`clock ${change.kind}`, { byMs: change.byMs })
  if (change?.kind === 'stepped') broker.leases.clockStepped(change.byMs)
  if (!gauge.look(performance.now())) return
  const { isFull, usedBytes } = gauge
  broker.memoryFull = isFull ? { usedBytes, budgetBytes } : undefined
  onEvent(isFull ? 'memory is full' : 'memory is free again', { usedBytes, budgetBytes })
}

function diskReport(broker: Broker): DiskReport {
  const { liveBytes, logBytes, segments, recordBytes, writtenBytes } = broker.usage()
  return { liveBytes, logBytes, segments, recordBytes, writtenBytes, oldest: broker.holder() }
}

/** Returns a number in [0, 1) from the system's generator, because the seed of hashes must not be predictable. */
function random(): number {
  return randomInt(2 ** 47) / 2 ** 47
}

function eventName(event: ListenerEvent): string {
  return `connection ${event}`
}

function describe(
  address: string,
  label: string,
  error: SluiceError | undefined,
): Readonly<Record<string, unknown>> {
  return {
    peer: address,
    client: label,
    ...(error === undefined ? {} : { code: error.code, reason: error.message }),
  }
}
