/**
 * The link to the broker: dials, keeps one connection, and dials again with a growing pause when it failed or was lost.
 * The client makes one and closes it; it goes on until then, or until a broker refuses the client for good.
 *
 * Invariant: until `stop` there is a connection, one that is being dialled, or a timer for the next attempt. The
 * producer has each new connection first, so that what is unanswered goes before what is new.
 */
import { durationText, LIMITS, SluiceError, Timer, type ErrorCode, type HelloOk } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import { Connection } from './connection.js'
import { fail } from './failure.js'
import type { Settings } from './options.js'
import { aborted } from './outcomes.js'
import type { Producer } from './producer.js'
import { failuresAfterLoss, reconnectDelayMs } from './reconnect.js'
import type { Dial } from './transport.js'

/** The connection to the broker was made. */
export interface Connected {
  readonly address: string
  readonly serverVersion: string
  /** False the first time. */
  readonly again: boolean
}

/** The connection was lost; the client dials again. */
export interface Disconnected {
  readonly error: SluiceError
}

/** The client is going to dial again. */
export interface Reconnecting {
  /** Attempts that failed in a row. */
  readonly attempt: number
  readonly delayMs: number
  readonly error: SluiceError
}

/** Something that the broker says by itself. */
export interface Notice {
  readonly code: ErrorCode
  readonly message: string
}

export interface LinkEvents {
  /** A connection is open, and the producer has it. */
  opened(connection: Connection): void
  /** After `opened`, when those that waited for a connection have been told. */
  connected(event: Connected): void
  disconnected(event: Disconnected): void
  reconnecting(event: Reconnecting): void
  notice(event: Notice): void
  /** An error that belongs to no request. */
  stray(error: SluiceError): void
  /** The connection takes more again. */
  writable(): void
  /** The link dials no more; its owner closes it. */
  refused(error: SluiceError): void
}

/** Waits for a connection. */
interface Opening {
  resolve(): void
  reject(error: SluiceError): void
}

// To dial again would only have the same answer.
const FATAL: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['AUTH_FAILED', 'PROTOCOL_VERSION'])

// What this side can hold; the broker tells what it allows.
const IN_FLIGHT_BATCHES = LIMITS.inFlightBatchesMax

export class Link {
  readonly #settings: Settings
  readonly #dial: Dial
  readonly #producer: Producer
  readonly #events: LinkEvents
  /** Being dialled, or open. */
  #connection: Connection | undefined
  /** 0: it is not open. */
  #openedMs = 0
  #failures = 0
  #wasOpen = false
  #timer: Timer | undefined
  readonly #openings = new Set<Opening>()
  /** The first attempt is the only one. */
  #dialsOnce = false
  #lastError: SluiceError | undefined
  #isStopped = false

  constructor(settings: Settings, dial: Dial, producer: Producer, events: LinkEvents) {
    this.#settings = settings
    this.#dial = dial
    this.#producer = producer
    this.#events = events
  }

  /** The open connection, if there is one. */
  get connection(): Connection | undefined {
    return this.#connection?.open === true ? this.#connection : undefined
  }

  /** The connection that takes new work, if there is one: it is open, and the broker has not said that it closes it. */
  get serving(): Connection | undefined {
    const { connection } = this
    return connection?.stopping === false ? connection : undefined
  }

  /** Begins to dial. */
  start(): void {
    const { address, name, heartbeatMs } = this.#settings
    const producer = this.#producer
    const events = this.#events
    const connection: Connection = new Connection(
      this.#dial,
      address,
      {
        name,
        heartbeatMs,
        producer: producer.identity,
        acceptedNumber: producer.acceptedNumber,
        inFlightBatches: IN_FLIGHT_BATCHES,
      },
      {
        opened: (ok) => this.#opened(connection, ok),
        publishOk: (bytes, start, end) => producer.publishOk(bytes, start, end),
        publishErr: (bytes, start, end) => producer.publishErr(bytes, start, end),
        atomicOk: (bytes, start, end) => producer.atomicOk(bytes, start, end),
        stray: (error) => events.stray(error),
        stopping: (message) => {
          producer.offline()
          events.notice({ code: 'SHUTTING_DOWN', message })
        },
        writable: () => events.writable(),
        lost: (error) => this.#lost(error),
      },
    )
    this.#connection = connection
  }

  /**
   * Begins to dial, and resolves when there is a connection, within the time that the settings say; 0: at the first
   * attempt. Rejects else, and its owner closes it.
   */
  open(signal: AbortSignal | undefined): Promise<void> {
    const { connectTimeoutMs, timeoutMs } = this.#settings
    // One attempt alone still has to end when something listens there and says nothing.
    const opened = this.untilOpen(connectTimeoutMs || timeoutMs, signal)
    this.#dialsOnce = connectTimeoutMs === 0
    if (signal?.aborted !== true) this.start()
    return opened
  }

  /** Resolves when there is a connection. Rejects with UNREACHABLE after `timeoutMs`, and with ABORTED. */
  untilOpen(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      if (signal?.aborted === true) throw aborted(signal, false)
      if (this.connection !== undefined) {
        resolve()
        return
      }
      const done = (): void => {
        timer?.cancel()
        removeAbortListener(signal, onAbort)
        this.#openings.delete(opening)
      }
      const opening: Opening = {
        resolve: () => {
          done()
          resolve()
        },
        reject: (error) => {
          done()
          fail(resolve, error)
        },
      }
      const onAbort = (): void => opening.reject(aborted(signal!, false))
      const timer =
        timeoutMs === Infinity
          ? undefined
          : new Timer(() => opening.reject(this.#unreachable(timeoutMs)), timeoutMs)
      if (signal !== undefined) addAbortListener(signal, onAbort)
      this.#openings.add(opening)
    })
  }

  #unreachable(afterMs: number): SluiceError {
    const { address } = this.#settings
    const last = this.#lastError
    if (last !== undefined && last.code !== 'UNREACHABLE') return last
    const why = last === undefined ? `No broker answers at ${address.text}.` : last.message
    return new SluiceError(
      'UNREACHABLE',
      `${why}${afterMs === 0 ? '' : ` Gave up after ${durationText(afterMs)}.`} Is the broker running, and is that its address?`,
      { cause: last },
    )
  }

  #opened(connection: Connection, ok: HelloOk): void {
    this.#openedMs = performance.now()
    this.#producer.attach(connection, ok)
    this.#events.opened(connection)
    const again = this.#wasOpen
    this.#wasOpen = true
    this.#dialsOnce = false
    for (const opening of [...this.#openings]) opening.resolve()
    const { serverVersion } = ok
    this.#events.connected({ address: this.#settings.address.text, serverVersion, again })
  }

  #lost(error: SluiceError): void {
    const openMs = this.#openedMs === 0 ? 0 : performance.now() - this.#openedMs
    const wasOpen = this.#openedMs > 0
    this.#openedMs = 0
    this.#connection = undefined
    this.#lastError = error
    if (this.#isStopped) return
    if (wasOpen) {
      this.#producer.offline()
      this.#events.disconnected({ error })
      // A listener may have closed the client.
      if (this.#hasStopped()) return
    }
    if (FATAL.has(error.code)) {
      this.#events.refused(error)
      return
    }
    if (this.#dialsOnce) {
      this.#events.refused(this.#unreachable(0))
      return
    }
    if (error.code === 'PRODUCER_UNKNOWN') this.#producer.renew()
    this.#failures = failuresAfterLoss(this.#failures, openMs)
    const delayMs = Math.max(reconnectDelayMs(this.#failures, Math.random()), error.retryAfterMs)
    // This timer is what keeps the process alive while there is no socket.
    this.#timer = new Timer(() => this.start(), delayMs)
    this.#events.reconnecting({ attempt: this.#failures, delayMs, error })
  }

  #hasStopped(): boolean {
    return this.#isStopped
  }

  /**
   * Ends dialling; there is no `connection` from now on. What it returns ends the one that there was, and rejects the calls
   * that wait for one: the owner calls it once nothing of its own would use the connection.
   */
  stop(): (error: SluiceError) => void {
    this.#isStopped = true
    this.#timer?.cancel()
    const connection = this.#connection
    this.#connection = undefined
    return (error) => {
      if (error.code === 'CLOSED') connection?.goodbye()
      else connection?.fail(error)
      for (const opening of [...this.#openings]) opening.reject(error)
    }
  }
}
