import { createConnection, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import type { Body, Driver, Session } from '../driver.js'
import { FLOOR, FLOOR_HEADER_BYTES, floorFrame, onFloorFrames } from '../floor-frames.js'
import { Server } from '../../rig/server.js'

/** The client of the bare loop: one frame per turn of the event loop, one promise per publish, one ack call per message. */
class FloorSession implements Session {
  readonly #socket: Socket
  readonly #resolves: (() => void)[] = []
  #resolvedTo = 0
  #batch = Buffer.allocUnsafeSlow(1 << 20)
  #end = FLOOR_HEADER_BYTES
  #count = 0
  #acks = 0
  #isScheduled = false
  #each: ((body: Body, ack: () => void) => void) | undefined
  readonly #ack = (): void => {
    this.#acks++
    this.#schedule()
  }

  constructor(socket: Socket) {
    this.#socket = socket
    onFloorFrames(socket, (type, count, payload) => {
      if (type === FLOOR.confirm) this.#confirmed(count)
      else this.#delivered(payload)
    })
  }

  publish(_queue: string, body: Body): Promise<void> {
    const bytes = body as Uint8Array
    if (this.#end + 4 + bytes.length > this.#batch.length) this.#flush()
    this.#batch.writeUInt32LE(bytes.length, this.#end)
    this.#batch.set(bytes, this.#end + 4)
    this.#end += 4 + bytes.length
    this.#count++
    this.#schedule()
    return new Promise((resolve) => this.#resolves.push(resolve))
  }

  consume(_queue: string, held: number, each: (body: Body, ack: () => void) => void): Promise<void> {
    this.#each = each
    this.#socket.write(floorFrame(FLOOR.credit, held, 0))
    return Promise.resolve()
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.#socket.end(() => resolve()))
  }

  #schedule(): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    setImmediate(() => {
      this.#isScheduled = false
      this.#flush()
    })
  }

  #flush(): void {
    if (this.#acks > 0) {
      this.#socket.write(floorFrame(FLOOR.ack, this.#acks, 0))
      this.#acks = 0
    }
    if (this.#count === 0) return
    floorFrame(FLOOR.publish, this.#count, this.#end - FLOOR_HEADER_BYTES).copy(this.#batch)
    this.#socket.write(Buffer.from(this.#batch.subarray(0, this.#end)))
    this.#end = FLOOR_HEADER_BYTES
    this.#count = 0
  }

  #confirmed(count: number): void {
    for (const end = this.#resolvedTo + count; this.#resolvedTo < end; this.#resolvedTo++)
      this.#resolves[this.#resolvedTo]!()
    if (this.#resolvedTo * 2 < this.#resolves.length) return
    this.#resolves.splice(0, this.#resolvedTo)
    this.#resolvedTo = 0
  }

  #delivered(payload: Buffer): void {
    for (let at = 0; at < payload.length;) {
      const end = at + 4 + payload.readUInt32LE(at)
      this.#each!(payload.subarray(at + 4, end), this.#ack)
      at = end
    }
  }
}

export const floor: Driver = {
  name: 'floor',
  settings: 'no broker: bytes in, one write and one fdatasync per batch, bytes out',
  version: () => Promise.resolve(`node ${process.version}`),
  can: ({ queues, consumers, body, fanOut, from, restart }) =>
    queues === 1 && consumers === 1 && body === 'bytes' && fanOut === 'none' && from === 'queue' && !restart,
  async start(directory, port) {
    const server = new Server(process.execPath, [
      fileURLToPath(new URL('../floor-server.js', import.meta.url)),
      directory,
      String(port),
    ])
    await server.listens(port)
    return {
      url: String(port),
      pids: [server.pid],
      makeQueues: () => Promise.resolve(),
      stop: () => server.stop(),
    }
  },
  async connect(url) {
    const socket = createConnection(Number(url), '127.0.0.1')
    await new Promise((resolve) => socket.once('connect', resolve))
    socket.setNoDelay(true)
    return new FloorSession(socket)
  },
}
