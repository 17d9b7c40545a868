/**
 * The TCP edge: sockets on one side, sessions on the other, and the one timer that wakes them. Nothing here knows
 * what a frame means.
 */
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { SluiceError, viewBytes } from '@sluice/protocol'
import type { Broker } from '../broker/broker.js'
import { Session, type SessionSettings, type Transport } from '../session/session.js'

export interface ListenerOptions {
  readonly host: string
  readonly port: number
  readonly connectionsMax: number
  /** Bytes of half-received frames that all connections together may keep. */
  readonly receiveBytesMax: number
  readonly settings: SessionSettings
  readonly now: () => number
  readonly onEvent: (event: ListenerEvent, session: Session, error: SluiceError | undefined) => void
}

export type ListenerEvent = 'connected' | 'closed' | 'refused'

/** Deadlines are looked at so often; all of them are much longer. */
const TICK_MS = 50
/**
 * A connection that keeps the loop busy for longer with what it sent is not read from again in this turn. Node would read
 * it dry before anything else, up to 2 MiB: single messages for many queues are then handled and confirmed in one lump,
 * and the producer works while the broker waits and the other way round (154k a second instead of 192k; ADR 0019).
 */
const REST_MS = 0.5

export class Listener {
  readonly #broker: Broker
  readonly #options: ListenerOptions
  readonly #server: Server
  readonly #sessions = new Map<Session, Socket>()
  #ticker: NodeJS.Timeout | undefined
  #tickedMs = 0
  #receiveBytes = 0

  constructor(broker: Broker, options: ListenerOptions) {
    this.#broker = broker
    this.#options = options
    this.#server = createServer({ noDelay: true }, (socket) => this.#accept(socket))
  }

  get connections(): number {
    return this.#sessions.size
  }

  /** Bytes of half-received frames. */
  get receiveBytes(): number {
    return this.#receiveBytes
  }

  /** Resolves with the address once connections are accepted; rejects when the port is taken. */
  listen(): Promise<AddressInfo> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen({ host: this.#options.host, port: this.#options.port, backlog: 4096 }, () => {
        this.#server.off('error', reject)
        this.#tickedMs = this.#options.now()
        this.#ticker = setInterval(() => this.#tick(), TICK_MS)
        resolve(this.#server.address() as AddressInfo)
      })
    })
  }

  /** Accepts nothing more, tells every client, gives those that hold leases `graceMs` to settle, and closes. */
  async stop(graceMs: number): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
    })
    this.#broker.beginTurn()
    for (const session of this.#sessions.keys()) session.goodbye('The broker is stopping.')
    const untilMs = this.#options.now() + graceMs
    while (this.#sessions.size > 0 && this.#options.now() < untilMs) {
      this.#broker.beginTurn()
      for (const session of this.#sessions.keys()) if (session.isIdle) session.end()
      await pause(10)
    }
    for (const session of this.#sessions.keys()) session.end()
    const hardMs = this.#options.now() + graceMs
    while (this.#sessions.size > 0 && this.#options.now() < hardMs) await pause(10)
    for (const socket of this.#sessions.values()) socket.destroy()
    clearInterval(this.#ticker)
    await closed
  }

  /** The log failed: nothing leaves any more. */
  abort(): void {
    clearInterval(this.#ticker)
    this.#server.close()
    for (const socket of this.#sessions.values()) socket.destroy()
  }

  #accept(socket: Socket): void {
    const transport = new SocketTransport(socket)
    const nowMs = this.#options.now()
    const session = new Session(this.#broker, transport, this.#options.settings, nowMs, (closed, why) => {
      this.#options.onEvent('closed', closed, why)
    })
    socket.on('error', () => {
      // 'close' follows; what the other side did to its socket is no event of ours.
    })
    socket.on('close', () => {
      this.#sessions.delete(session)
      this.#broker.beginTurn()
      session.disconnected()
    })
    this.#sessions.set(session, socket)
    if (this.#sessions.size > this.#options.connectionsMax) {
      const error = new SluiceError(
        'TOO_MANY_CONNECTIONS',
        `There are ${this.#sessions.size - 1} connections; at most ${this.#options.connectionsMax} are allowed.`,
      )
      this.#options.onEvent('refused', session, error)
      session.fail(error)
      return
    }
    let held = 0
    socket.on('data', (chunk) => {
      const begunMs = performance.now()
      // Not as the Buffer that it is: what is cut out of one costs twice as much.
      session.receive(viewBytes(chunk, 0, chunk.length), this.#options.now())
      this.#receiveBytes += session.heldBytes - held
      held = session.heldBytes
      if (held > 0 && this.#receiveBytes > this.#options.receiveBytesMax)
        session.fail(this.#receiveBudgetError())
      if (performance.now() - begunMs > REST_MS) transport.rest()
    })
    socket.on('close', () => (this.#receiveBytes -= held))
    // The peer has ended its side: whatever it still wanted to hear, it says GOODBYE first and reads on.
    socket.on('end', () => session.disconnected())
    this.#options.onEvent('connected', session, undefined)
  }

  #receiveBudgetError(): SluiceError {
    const { receiveBytesMax } = this.#options
    const text = `Half-received frames take ${this.#receiveBytes} bytes; at most ${receiveBytesMax} are kept for all connections together.`
    return new SluiceError('MEMORY_FULL', text, { scope: 'connection', retryAfterMs: 1_000 })
  }

  // A late call is judged only after the sockets were polled once more: what came meanwhile counts.
  #tick(): void {
    const nowMs = this.#options.now()
    const stallMs = Math.max(0, nowMs - this.#tickedMs - 2 * TICK_MS)
    this.#tickedMs = nowMs
    if (nowMs >= this.#broker.nextDeadline) this.#broker.tick()
    setImmediate(() => {
      this.#broker.beginTurn()
      for (const session of this.#sessions.keys()) session.tick(nowMs, stallMs)
    })
  }
}

/** How long a closed connection may take to flush its last words. */
const LINGER_MS = 1_000

export class SocketTransport implements Transport {
  readonly peer: string
  readonly #socket: Socket
  #isPaused = false
  #isResting = false

  constructor(socket: Socket) {
    this.#socket = socket
    this.peer = `${socket.remoteAddress ?? ''}:${socket.remotePort ?? 0}`
  }

  write(bytes: Uint8Array, written: () => void): void {
    if (this.#socket.writable) this.#socket.write(bytes, written)
  }

  pause(): void {
    this.#isPaused = true
    this.#socket.pause()
  }

  resume(): void {
    this.#isPaused = false
    if (!this.#isResting) this.#socket.resume()
  }

  /** Reads on in the next turn, unless it is paused then. */
  rest(): void {
    if (this.#isResting) return
    this.#isResting = true
    this.#socket.pause()
    setImmediate(() => {
      this.#isResting = false
      if (!this.#isPaused) this.#socket.resume()
    })
  }

  end(): void {
    this.#socket.end()
    // A peer that does not close its side is not waited for.
    setTimeout(() => this.#socket.destroy(), LINGER_MS).unref()
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}
