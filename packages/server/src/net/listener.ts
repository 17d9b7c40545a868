/**
 * The TCP listener: it accepts sockets, creates a peer for each, and runs the timer for their deadlines. It owns the
 * limit of connections and the memory budget for partly received frames. It does not know the protocol.
 */
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { SluiceError, viewBytes } from '@sluice/protocol'
import type { NewPeer, Peer } from './peer.js'
import { SocketTransport } from './socket-transport.js'

/** The turns of the broker, as the listener sees them. */
export interface Turns {
  /** The next time at which `tick` is due, in milliseconds since the epoch. */
  readonly nextDeadline: number
  /** Starts a turn. All commands of the turn get the time at which it started. */
  begin(): void
  tick(): void
}

export interface ListenerOptions {
  readonly host: string
  readonly port: number
  readonly connectionsMax: number
  /** Maximum memory for the partly received frames of all connections, in bytes. */
  readonly receiveBytesMax: number
  /** Creates the peer of each connection, which handles the protocol of this port. */
  readonly newPeer: NewPeer
  readonly now: () => number
  /** `address` and `label` identify the client, which has chosen its label itself. */
  readonly onEvent: (
    event: ListenerEvent,
    address: string,
    label: string,
    error: SluiceError | undefined,
  ) => void
  /** Called with a failure that does not belong to a connection. */
  readonly onFailure: (what: string, error: unknown) => void
}

export type ListenerEvent = 'connected' | 'closed' | 'refused'

/** Interval at which deadlines are checked; all timeouts are much longer. */
const TICK_MS = 50
/**
 * If handling one chunk takes longer than this, the connection is not read again in this turn. Otherwise Node would
 * read up to 2 MiB from this connection before it turns to other work. Single messages to many queues would then all be
 * handled and confirmed at once, and the broker and the producer would alternately wait for each other. In a test this
 * reduced 192,000 messages per second to 154,000 (ADR 0019).
 */
const REST_MS = 0.5

/**
 * Minimum and maximum of the limit on departing connections. A departing connection is a refused connection whose
 * error is still unsent, or a closed connection that is still flushing. The limit is a quarter of `connectionsMax`
 * within these bounds. Beyond the limit, the socket that has been departing longest is destroyed.
 */
const DEPARTING_MIN = 16
const DEPARTING_MAX = 128

/** If a connection could not be accepted, the port is closed and is reopened after this time. */
const ACCEPT_RETRY_MS = 250

interface Link {
  readonly socket: Socket
  readonly transport: SocketTransport
  /** Memory for the partly received frame of the peer, in bytes. */
  heldBytes: number
}

/**
 * Invariant: `#links` contains the connections that count against `connectionsMax`. When a peer closes, its link moves to
 * `#departing`, where it stays until its socket is closed.
 */
export class Listener {
  readonly #turns: Turns
  readonly #options: ListenerOptions
  #server: Server
  readonly #links = new Map<Peer, Link>()
  readonly #departing = new Map<Peer, Link>()
  readonly #departingMax: number
  #address: AddressInfo | undefined
  #ticker: NodeJS.Timeout | undefined
  #retry: NodeJS.Timeout | undefined
  #stopped = false
  /** Whether the last attempt to accept a connection failed. */
  #isFailing = false
  #tickedMs = 0
  #receiveBytes = 0

  constructor(turns: Turns, options: ListenerOptions) {
    this.#turns = turns
    this.#options = options
    this.#departingMax = Math.max(DEPARTING_MIN, Math.min(options.connectionsMax >> 2, DEPARTING_MAX))
    this.#server = this.#newServer()
  }

  /** Number of connections that count against the limit. */
  get connections(): number {
    return this.#links.size
  }

  /** Memory for partly received frames. */
  get receiveBytes(): number {
    return this.#receiveBytes
  }

  /** Resolves with the address once connections are accepted. Rejects if the port is in use. */
  async listen(): Promise<AddressInfo> {
    this.#address = await this.#open(this.#options.port)
    this.#tickedMs = this.#options.now()
    this.#ticker = setInterval(() => this.#tick(), TICK_MS)
    return this.#address
  }

  /** Closes the port, notifies each client, allows `graceMs` for settling leased messages, and closes the connections. */
  async stop(graceMs: number): Promise<void> {
    const closed = this.#close()
    this.#turns.begin()
    for (const peer of this.#departing.keys()) peer.end()
    for (const peer of this.#links.keys()) peer.goodbye('The broker is stopping.')
    const untilMs = this.#options.now() + graceMs
    while (this.#links.size > 0 && this.#options.now() < untilMs) {
      this.#turns.begin()
      for (const peer of this.#links.keys()) if (peer.isIdle) peer.end()
      await pause(10)
    }
    for (const peer of this.#links.keys()) peer.end()
    const hardMs = this.#options.now() + graceMs
    while (this.#links.size + this.#departing.size > 0 && this.#options.now() < hardMs) await pause(10)
    this.#destroyAll()
    clearInterval(this.#ticker)
    await closed
  }

  /** Called when the log has failed. After that, no further byte may be sent. */
  abort(): void {
    clearInterval(this.#ticker)
    void this.#close()
    this.#destroyAll()
  }

  #close(): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#retry)
    return new Promise((resolve) => {
      this.#server.close(() => resolve())
    })
  }

  #destroyAll(): void {
    for (const { socket } of this.#links.values()) socket.destroy()
    for (const { socket } of this.#departing.values()) socket.destroy()
  }

  // `allowHalfOpen`: a client can send GOODBYE, close its side, and still read its outstanding answers.
  #newServer(): Server {
    return createServer({ noDelay: true, allowHalfOpen: true }, (socket) => this.#accept(socket))
  }

  #open(port: number): Promise<AddressInfo> {
    const server = this.#server
    return new Promise((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host: this.#options.host, port, backlog: 4096 }, () => {
        server.off('error', reject)
        server.on('error', (error) => this.#acceptFailed(error))
        resolve(server.address() as AddressInfo)
      })
    })
  }

  // While a waiting connection cannot be accepted, for example because no file descriptor is free, the system reports
  // the same error again and again. Closing the port for a while prevents this loop.
  #acceptFailed(error: unknown): void {
    if (this.#stopped || this.#retry !== undefined) return
    this.#report(error)
    this.#server.close()
    this.#reopenLater()
  }

  #reopenLater(): void {
    this.#retry = setTimeout(() => {
      this.#server = this.#newServer()
      this.#open(this.#address!.port).then(
        () => (this.#retry = undefined),
        (error: unknown) => {
          if (this.#stopped) return
          this.#report(error)
          this.#reopenLater()
        },
      )
    }, ACCEPT_RETRY_MS)
  }

  // Reports the first failure. Further failures are not reported until a connection is accepted again.
  #report(error: unknown): void {
    if (this.#isFailing) return
    this.#isFailing = true
    this.#options.onFailure('connections cannot be accepted', error)
  }

  #accept(socket: Socket): void {
    const transport = new SocketTransport(socket)
    const link: Link = { socket, transport, heldBytes: 0 }
    let refused = false
    const { newPeer, now, onEvent, connectionsMax } = this.#options
    const peer = newPeer(transport, now(), (closed, why) => {
      if (this.#links.delete(closed)) this.#depart(closed, link)
      this.#forget(link)
      onEvent(refused ? 'refused' : 'closed', transport.address, closed.label, why)
    })
    socket.on('error', () => {
      // The event 'close' follows, and its handler does the work. A reset by the client needs no report.
    })
    socket.on('close', () => {
      this.#links.delete(peer)
      this.#departing.delete(peer)
      this.#turns.begin()
      peer.disconnected()
    })
    socket.on('data', (chunk) => this.#received(peer, link, chunk))
    socket.on('end', () => {
      this.#turns.begin()
      peer.inputEnded()
    })
    if (this.#links.size >= connectionsMax) {
      refused = true
      peer.refuse(
        new SluiceError(
          'TOO_MANY_CONNECTIONS',
          `There are ${this.#links.size} connections; at most ${connectionsMax} are allowed.`,
        ),
      )
      this.#depart(peer, link)
      return
    }
    this.#isFailing = false
    this.#links.set(peer, link)
    onEvent('connected', transport.address, peer.label, undefined)
  }

  // Called for a connection that no longer counts against the limit, or that was refused and never counted. Its
  // socket may need a moment to send the last bytes.
  #depart(peer: Peer, link: Link): void {
    this.#departing.set(peer, link)
    if (this.#departing.size <= this.#departingMax) return
    for (const [oldest, { socket }] of this.#departing) {
      this.#departing.delete(oldest)
      socket.destroy()
      return
    }
  }

  #forget(link: Link): void {
    this.#receiveBytes -= link.heldBytes
    link.heldBytes = 0
  }

  #received(peer: Peer, link: Link, chunk: Buffer): void {
    const begunMs = performance.now()
    // The chunk is passed as a plain Uint8Array, because `subarray` of a Buffer takes twice as long.
    peer.receive(viewBytes(chunk, 0, chunk.length), this.#options.now())
    const held = peer.heldBytes
    if (held !== link.heldBytes) {
      this.#receiveBytes += held - link.heldBytes
      link.heldBytes = held
      if (this.#receiveBytes > this.#options.receiveBytesMax) this.#makeRoom()
    }
    if (performance.now() - begunMs > REST_MS) link.transport.rest()
  }

  // Closes the connection that uses the most memory, which need not be the connection that has just received bytes.
  #makeRoom(): void {
    let largest: Peer | undefined
    let most = 0
    for (const [peer, { heldBytes }] of this.#links) {
      if (heldBytes <= most) continue
      largest = peer
      most = heldBytes
    }
    largest?.fail(this.#receiveBudgetError(most))
  }

  #receiveBudgetError(heldBytes: number): SluiceError {
    const { receiveBytesMax } = this.#options
    const text = `The partly received frame of this connection takes ${heldBytes} bytes, more than that of any other connection. The frames of all connections take ${this.#receiveBytes} bytes; at most ${receiveBytesMax} are allowed.`
    return new SluiceError('MEMORY_FULL', text, { scope: 'connection', retryAfterMs: 1_000 })
  }

  // Deadlines are checked after the next poll of the sockets, so that bytes that arrived during a stall are read first.
  #tick(): void {
    const nowMs = this.#options.now()
    const stallMs = Math.max(0, nowMs - this.#tickedMs - 2 * TICK_MS)
    this.#tickedMs = nowMs
    if (nowMs >= this.#turns.nextDeadline) this.#turns.tick()
    setImmediate(() => {
      this.#turns.begin()
      for (const peer of this.#links.keys()) peer.tick(nowMs, stallMs)
      for (const peer of this.#departing.keys()) peer.tick(nowMs, stallMs)
    })
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}
