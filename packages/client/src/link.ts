/**
 * The link to the broker: dials, keeps one connection, and dials again with a growing pause when it fails or is lost.
 * The client makes one link and stops it. A broker that refuses the client permanently ends the link too.
 *
 * Invariant: until `stop` there is an open connection, a connection being dialled, or a timer for the next attempt. The
 * producer gets each new connection first, so that unanswered publishes are sent before new work.
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

/** Event: the client has connected to the broker. */
export interface Connected {
  readonly address: string
  readonly serverVersion: string
  /** Whether the client was connected before; false for its first connection. */
  readonly again: boolean
}

/** Event: the connection was lost; the client dials again. */
export interface Disconnected {
  readonly error: SluiceError
}

/** Event: the client dials again after `delayMs`. */
export interface Reconnecting {
  /** Number of consecutive failures. */
  readonly attempt: number
  readonly delayMs: number
  readonly error: SluiceError
}

/** Event: a notice from the broker, which is not the answer to a request. */
export interface Notice {
  readonly code: ErrorCode
  readonly message: string
}

export interface LinkEvents {
  /** Called when a connection is open and the producer has it. */
  opened(connection: Connection): void
  /** Called after `opened`, when all calls that waited for a connection are resolved. */
  connected(event: Connected): void
  disconnected(event: Disconnected): void
  reconnecting(event: Reconnecting): void
  notice(event: Notice): void
  /** Called for a reply to a request. */
  answered(bytes: Uint8Array, start: number, end: number): void
  /** Called for an error that belongs to no request. */
  stray(error: SluiceError): void
  /** Called when the connection accepts bytes again. */
  writable(): void
  /** Called when the link has stopped dialling; the owner then closes the link. */
  refused(error: SluiceError): void
}

/** A caller that waits for a connection. */
interface Opening {
  resolve(): void
  reject(error: SluiceError): void
}

// Errors after which the client does not dial again, because the result would be the same.
const FATAL: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['AUTH_FAILED', 'PROTOCOL_VERSION'])

// Maximum number of unanswered batches that the client offers. The broker answers with its own maximum.
const IN_FLIGHT_BATCHES = LIMITS.inFlightBatchesMax

export class Link {
  readonly #settings: Settings
  readonly #dial: Dial
  readonly #producer: Producer
  readonly #events: LinkEvents
  /** The connection that is being dialled or open. */
  #connection: Connection | undefined
  /** Time at which the connection was opened; 0 if it is not open. */
  #openedMs = 0
  #failures = 0
  #wasOpen = false
  #timer: Timer | undefined
  readonly #openings = new Set<Opening>()
  /** Whether the link makes only one attempt to connect. */
  #dialsOnce = false
  /** The error of the last attempt to connect; undefined if that attempt succeeded. */
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

  /** The open connection, if there is one and the broker is not about to close it. */
  get serving(): Connection | undefined {
    const { connection } = this
    return connection?.stopping === false ? connection : undefined
  }

  /** Starts to dial. */
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
        inFlightBatchesMax: IN_FLIGHT_BATCHES,
      },
      {
        opened: (ok) => this.#opened(connection, ok),
        publishOk: (bytes, start, end) => producer.publishOk(bytes, start, end),
        publishErr: (bytes, start, end) => producer.publishErr(bytes, start, end),
        atomicOk: (bytes, start, end) => producer.atomicOk(bytes, start, end),
        answered: (bytes, start, end) => events.answered(bytes, start, end),
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
   * Starts to dial. Resolves when there is a connection within `connectTimeoutMs`. If `connectTimeoutMs` is 0, there is
   * only one attempt. If there is no connection, the promise rejects, and the owner closes the link.
   */
  open(signal: AbortSignal | undefined): Promise<void> {
    const { connectTimeoutMs, timeoutMs } = this.#settings
    // A single attempt must also end when a process accepts the connection and sends nothing.
    const opened = this.untilOpen(connectTimeoutMs || timeoutMs, signal)
    this.#dialsOnce = connectTimeoutMs === 0
    if (signal?.aborted !== true) this.start()
    return opened
  }

  /**
   * Resolves when there is a connection. Rejects with UNREACHABLE after `timeoutMs`, and with ABORTED when `signal` is
   * aborted.
   */
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
    this.#lastError = wasOpen ? undefined : error
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
    // This timer keeps the process alive while there is no socket.
    this.#timer = new Timer(() => this.start(), delayMs)
    this.#events.reconnecting({ attempt: this.#failures, delayMs, error })
  }

  #hasStopped(): boolean {
    return this.#isStopped
  }

  /**
   * Stops dialling; from now on `connection` is undefined. Returns a function that ends the last connection and
   * rejects the calls that wait for a connection. The owner calls that function once no part of the client uses the
   * connection.
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
