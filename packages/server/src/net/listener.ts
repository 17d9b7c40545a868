/**
 * The TCP edge: sockets on one side, peers on the other, and the one timer that wakes them. Owns which connections have
 * a place, and the budget for half-received input. Nothing here knows what the bytes mean.
 */
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { SluiceError, viewBytes } from '@sluice/protocol'
import type { NewPeer, Peer } from './peer.js'
import { SocketTransport } from './socket-transport.js'

/** The broker, as far as the listener drives it. */
export interface Turns {
  /** The next time at which `tick` has something to do, ms since the epoch. */
  readonly nextDeadline: number
  /** Everything until the end of the turn happens at its time. */
  begin(): void
  tick(): void
}

export interface ListenerOptions {
  readonly host: string
  readonly port: number
  readonly connectionsMax: number
  /** Bytes of half-received frames that all connections together may keep. */
  readonly receiveBytesMax: number
  /** The protocol that is spoken on this port. */
  readonly newPeer: NewPeer
  readonly now: () => number
  /** `address` is where the client is, and `label` what it calls itself. */
  readonly onEvent: (
    event: ListenerEvent,
    address: string,
    label: string,
    error: SluiceError | undefined,
  ) => void
  /** Something failed that belongs to no connection. */
  readonly onTrouble: (what: string, error: unknown) => void
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

/**
 * Connections that have no place and are not gone: refused ones that wait to be told, closed ones that flush. Beyond a
 * quarter of the places, within these bounds, the oldest is cut off.
 */
const PARTING_MIN = 16
const PARTING_MAX = 128

/** Pause before the port is opened again after a connection could not be accepted. */
const ACCEPT_RETRY_MS = 250

interface Link {
  readonly socket: Socket
  readonly transport: SocketTransport
  /** What its half-received input takes. */
  heldBytes: number
}

/**
 * Invariant: `#links` are the connections that are counted against `connectionsMax`; a link leaves it when its peer
 * closes, before its socket does, and is in `#parting` until the socket is closed too.
 */
export class Listener {
  readonly #turns: Turns
  readonly #options: ListenerOptions
  #server: Server
  readonly #links = new Map<Peer, Link>()
  readonly #parting = new Map<Peer, Link>()
  readonly #partingMax: number
  #address: AddressInfo | undefined
  #ticker: NodeJS.Timeout | undefined
  #retry: NodeJS.Timeout | undefined
  #stopped = false
  #isTroubled = false
  #tickedMs = 0
  #receiveBytes = 0

  constructor(turns: Turns, options: ListenerOptions) {
    this.#turns = turns
    this.#options = options
    this.#partingMax = Math.max(PARTING_MIN, Math.min(options.connectionsMax >> 2, PARTING_MAX))
    this.#server = this.#newServer()
  }

  /** Connections that have a place. */
  get connections(): number {
    return this.#links.size
  }

  /** Bytes of half-received frames. */
  get receiveBytes(): number {
    return this.#receiveBytes
  }

  /** Resolves with the address once connections are accepted; rejects when the port is taken. */
  async listen(): Promise<AddressInfo> {
    this.#address = await this.#open(this.#options.port)
    this.#tickedMs = this.#options.now()
    this.#ticker = setInterval(() => this.#tick(), TICK_MS)
    return this.#address
  }

  /** Accepts nothing more, tells every client, gives those that hold leases `graceMs` to settle, and closes. */
  async stop(graceMs: number): Promise<void> {
    const closed = this.#close()
    this.#turns.begin()
    for (const peer of this.#parting.keys()) peer.end()
    for (const peer of this.#links.keys()) peer.goodbye('The broker is stopping.')
    const untilMs = this.#options.now() + graceMs
    while (this.#links.size > 0 && this.#options.now() < untilMs) {
      this.#turns.begin()
      for (const peer of this.#links.keys()) if (peer.isIdle) peer.end()
      await pause(10)
    }
    for (const peer of this.#links.keys()) peer.end()
    const hardMs = this.#options.now() + graceMs
    while (this.#links.size + this.#parting.size > 0 && this.#options.now() < hardMs) await pause(10)
    this.#destroyAll()
    clearInterval(this.#ticker)
    await closed
  }

  /** The log failed: nothing leaves any more. */
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
    for (const { socket } of this.#parting.values()) socket.destroy()
  }

  // `allowHalfOpen`: a client may say GOODBYE, close its side, and still read the answers that are under way.
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

  // The system asks again at once for as long as a connection waits that cannot be accepted, such as without a free
  // file descriptor. A closed port does not ask.
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

  // Once, until connections are accepted again.
  #report(error: unknown): void {
    if (this.#isTroubled) return
    this.#isTroubled = true
    this.#options.onTrouble('connections cannot be accepted', error)
  }

  #accept(socket: Socket): void {
    const transport = new SocketTransport(socket)
    const link: Link = { socket, transport, heldBytes: 0 }
    let refused = false
    const { newPeer, now, onEvent, connectionsMax } = this.#options
    const peer = newPeer(transport, now(), (closed, why) => {
      if (this.#links.delete(closed)) this.#part(closed, link)
      this.#forget(link)
      onEvent(refused ? 'refused' : 'closed', transport.peer, closed.label, why)
    })
    socket.on('error', () => {
      // 'close' follows; what the other side did to its socket is no event of ours.
    })
    socket.on('close', () => {
      this.#links.delete(peer)
      this.#parting.delete(peer)
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
      this.#part(peer, link)
      return
    }
    this.#isTroubled = false
    this.#links.set(peer, link)
    onEvent('connected', transport.peer, peer.label, undefined)
  }

  // It has no place any more, or never had one; its socket may take a moment to be told and to flush.
  #part(peer: Peer, link: Link): void {
    this.#parting.set(peer, link)
    if (this.#parting.size <= this.#partingMax) return
    for (const [oldest, { socket }] of this.#parting) {
      this.#parting.delete(oldest)
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
    // Not as the Buffer that it is: what is cut out of one costs twice as much.
    peer.receive(viewBytes(chunk, 0, chunk.length), this.#options.now())
    const held = peer.heldBytes
    if (held !== link.heldBytes) {
      this.#receiveBytes += held - link.heldBytes
      link.heldBytes = held
      if (this.#receiveBytes > this.#options.receiveBytesMax) this.#makeRoom()
    }
    if (performance.now() - begunMs > REST_MS) link.transport.rest()
  }

  // The connection that takes most gives way, not the one whose bytes came last.
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
    const text = `The half-received frame of this connection takes ${heldBytes} bytes, the most of all connections, which together take ${this.#receiveBytes}; at most ${receiveBytesMax} are kept.`
    return new SluiceError('MEMORY_FULL', text, { scope: 'connection', retryAfterMs: 1_000 })
  }

  // A late call is judged only after the sockets were polled once more: what came meanwhile counts.
  #tick(): void {
    const nowMs = this.#options.now()
    const stallMs = Math.max(0, nowMs - this.#tickedMs - 2 * TICK_MS)
    this.#tickedMs = nowMs
    if (nowMs >= this.#turns.nextDeadline) this.#turns.tick()
    setImmediate(() => {
      this.#turns.begin()
      for (const peer of this.#links.keys()) peer.tick(nowMs, stallMs)
      for (const peer of this.#parting.keys()) peer.tick(nowMs, stallMs)
    })
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}
