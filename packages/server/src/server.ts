/**
 * One broker process: the data directory with its lock, the log, the broker and the port, put together and taken
 * apart in the right order.
 */
import { randomInt } from 'node:crypto'
import { resolve } from 'node:path'
import { MESSAGE_OVERHEAD_BYTES, SluiceError, TIMER_PART_MS_MAX } from '@sluice/protocol'
import { Broker, type BrokerStatus, type BrokerUsage } from './broker/broker.js'
import type { Holder } from './state/space.js'
import { NodeDisk } from './log/disk.js'
import { FileLog } from './log/file-log.js'
import { lockDirectory } from './log/lock.js'
import { MEMORY_BYTES_MIN, MemoryGauge, PROCESS_METER, defaultMemoryBytes, sharesOf } from './memory.js'
import { Clock, STEP_MS } from './net/clock.js'
import { connectionsFor, openFilesMax } from './open-files.js'
import { Listener, type ListenerEvent } from './net/listener.js'
import { Session } from './session/session.js'
import { SESSION_DEFAULTS, type SessionSettings } from './session/settings.js'
import { version } from './version.js'

export interface ServerOptions {
  /** Default './data'. Made if it is missing. */
  readonly dataDir?: string
  /** Takes over a data directory on a network file system that a broker of another machine may use. */
  readonly forceLock?: boolean
  /** Default '127.0.0.1'. */
  readonly host?: string
  /** Default 7420; 0 lets the system choose. */
  readonly port?: number
  /**
   * Default 64 MiB. Messages may be at most a quarter of it. Below 256 KiB the state of queues with keys, ids and times to
   * live does not fit: for tests of the log alone.
   */
  readonly segmentBytes?: number
  /** Default 1 MiB. */
  readonly messageBytesMax?: number
  /** Default 10,000; fewer where the limit of open files, less 256 for the rest of the broker, is lower. */
  readonly connectionsMax?: number
  /**
   * Memory that the process may use, in bytes; at least 192 MiB. When it is used up, publishes are refused with
   * MEMORY_FULL. Default: half of what the machine, or the container, has.
   */
  readonly memoryBytes?: number
  /** Free space below which publishes are refused. Default: 5 % of the disk, at least 1 GiB. */
  readonly lowFreeBytes?: number
  readonly session?: Partial<SessionSettings>
  /** Told what happens, for logs. */
  readonly onEvent?: (event: string, details: Readonly<Record<string, unknown>>) => void
  /** The log failed: the process has to end. Nothing was confirmed that is not on disk. */
  readonly onFatal?: (error: unknown) => void
}

export interface RunningServer {
  readonly host: string
  readonly port: number
  readonly dataDir: string
  readonly status: BrokerStatus
  readonly broker: Broker
  /** What the parts take now. */
  memory(): MemoryReport
  /** What is on disk, what was written, and what holds the oldest part of the log. Looks at every queue. */
  disk(): DiskReport
  /** Milliseconds from the call to `startServer` until connections were accepted. */
  readonly startedMs: number
  /** Stops accepting, tells clients, flushes, closes. Resolves when all of it is done. */
  stop(): Promise<void>
}

/** Bytes. */
export interface MemoryReport {
  readonly budgetBytes: number
  /** Runtime, objects and buffers, what is listed below among them. */
  readonly usedBytes: number
  /** Publishes are refused. */
  readonly isFull: boolean
  /** Of the log: what was written last, and what was read back. */
  readonly logBytes: number
  /** Of frames that are half received. */
  readonly receiveBytes: number
  /** Of what connections have not read. */
  readonly outboundBytes: number
}

/** Bytes, but for `segments`. `writtenBytes` over `recordBytes` is the write amplification since the broker started. */
export interface DiskReport extends Pick<
  BrokerUsage,
  'liveBytes' | 'logBytes' | 'segments' | 'recordBytes' | 'writtenBytes'
> {
  readonly oldest: Holder
}

/** How often memory is looked at: in between, no more can come than a network brings. */
const LOOK_MS = 50

/** How long clients have to finish once they were told that the broker stops. */
const GRACE_MS = 2_000

/**
 * Starts a broker on a data directory.
 * @throws SluiceError DATA_DIR_LOCKED, LOG_CORRUPT, INVALID_ARGUMENT; or the system's error for the port or directory
 */
export async function startServer(options: ServerOptions = {}): Promise<RunningServer> {
  const begunMs = performance.now()
  const budgetBytes = options.memoryBytes ?? defaultMemoryBytes()
  if (budgetBytes < MEMORY_BYTES_MIN) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `memoryBytes is ${budgetBytes}; a broker needs at least ${MEMORY_BYTES_MIN}.`,
    )
  }
  const dataDir = resolve(options.dataDir ?? './data')
  const disk = await NodeDisk.at(dataDir).catch((error: unknown) => {
    throw unusable(dataDir, error)
  })
  const lock = await lockDirectory(dataDir, {
    force: options.forceLock ?? false,
    onLost: (error) => onFatal(error),
  }).catch(async (error: unknown) => {
    await disk.close()
    throw unusable(dataDir, error)
  })
  const clock = new Clock()
  const onEvent = options.onEvent ?? ((): void => {})
  const shares = sharesOf(budgetBytes)
  const gauge = new MemoryGauge(budgetBytes, PROCESS_METER)
  const outbound = { bytes: 0, bytesMax: shares.outboundBytesMax }
  let looking: NodeJS.Timeout | undefined
  let listener: Listener | undefined
  let deadline: NodeJS.Timeout | undefined
  const onFatal = (error: unknown): void => {
    listener?.abort()
    clearTimeout(deadline)
    clearInterval(looking)
    options.onFatal?.(error)
  }
  try {
    const log = new FileLog({
      disk,
      now: () => clock.now(),
      random32: () => randomInt(2 ** 32),
      onNotice: (notice) => onEvent(`log ${notice.kind}`, { text: notice.text }),
      ...(options.segmentBytes === undefined ? {} : { segmentBytes: options.segmentBytes }),
      ...(options.lowFreeBytes === undefined ? {} : { lowFreeBytes: options.lowFreeBytes }),
    })
    const broker = await Broker.open({
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
          arm()
        })
      },
      onFatal,
      onNotice: (event, details) => onEvent(event, { ...details }),
      blocks: shares.blocks,
      pendingBytesMax: shares.pendingBytesMax,
      ...(options.messageBytesMax === undefined ? {} : { messageBytesMax: options.messageBytesMax }),
    })
    // The one timer of the broker's own deadlines, set anew where the nearest one has changed.
    let armedFor = Infinity
    const arm = (): void => {
      const next = broker.turn.nextDeadline
      if (next === armedFor) return
      armedFor = next
      clearTimeout(deadline)
      if (next === Infinity) return
      // After one part the clock is asked again: it may have been set meanwhile.
      const waitMs = Math.min(Math.max(0, next - clock.now()), TIMER_PART_MS_MAX)
      deadline = setTimeout(() => {
        armedFor = Infinity
        broker.turn.tick()
      }, waitMs)
    }
    const filesMax = openFilesMax()
    const wanted = options.connectionsMax ?? 10_000
    const connectionsMax = connectionsFor(wanted, filesMax)
    if (connectionsMax < wanted)
      onEvent('connections are limited by open files', { connectionsMax, wanted, openFilesMax: filesMax })
    const settings: SessionSettings = {
      ...SESSION_DEFAULTS,
      frameBytesMax: Math.max(
        SESSION_DEFAULTS.frameBytesMax,
        broker.messageBytesMax + MESSAGE_OVERHEAD_BYTES,
      ),
      serverVersion: version(),
      outbound,
      ...options.session,
    }
    listener = new Listener(broker.turn, {
      host: options.host ?? '127.0.0.1',
      port: options.port ?? 7420,
      connectionsMax,
      receiveBytesMax: shares.receiveBytesMax,
      newPeer: (transport, nowMs, onClosed) => new Session(broker, transport, settings, nowMs, onClosed),
      now: () => clock.now(),
      onEvent: (event, address, label, error) => onEvent(eventName(event), describe(address, label, error)),
      onTrouble: (what, error) => onEvent(what, { error }),
    })
    const listening = listener
    const address = await listening.listen().catch(async (error: unknown) => {
      await broker.close()
      throw error
    })
    arm()
    looking = setInterval(() => {
      const change = clock.look()
      if (change !== undefined) onEvent(`clock ${change.kind}`, { byMs: change.byMs })
      if (change?.kind === 'stepped') broker.leases.clockStepped(change.byMs)
      if (!gauge.look(performance.now())) return
      const { isFull, usedBytes } = gauge
      broker.memoryFull = isFull ? { usedBytes, budgetBytes } : undefined
      onEvent(isFull ? 'memory is full' : 'memory is free again', { usedBytes, budgetBytes })
    }, LOOK_MS)
    let stopping: Promise<void> | undefined
    return {
      host: address.address,
      port: address.port,
      dataDir,
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
      disk: () => {
        const { liveBytes, logBytes, segments, recordBytes, writtenBytes } = broker.usage()
        return { liveBytes, logBytes, segments, recordBytes, writtenBytes, oldest: broker.holder() }
      },
      startedMs: performance.now() - begunMs,
      stop: () => {
        stopping ??= (async () => {
          await listening.stop(GRACE_MS)
          await broker.close()
          clearTimeout(deadline)
          clearInterval(looking)
          await lock.release()
          await disk.close()
        })()
        return stopping
      },
    }
  } catch (error) {
    await lock.release()
    await disk.close()
    throw error
  }
}

/** The system's error as a sentence that names the directory, with its code; any other error as it is. */
function unusable(dataDir: string, error: unknown): unknown {
  const { code, message } = error as NodeJS.ErrnoException
  const reason = /^E[A-Z0-9]+: ([^,]+)/.exec(message)?.[1]
  if (error instanceof SluiceError || reason === undefined) return error
  const text = `The data directory ${dataDir} cannot be used: ${reason}.`
  return Object.assign(new Error(text, { cause: error }), { code })
}

/** In [0, 1), from the system's generator: the keys of hashes come from it, and nobody shall guess them. */
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
