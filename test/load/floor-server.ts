/**
 * The floor: what this machine, disk and runtime allow at this hour. It is a bare loop and a matching client: bytes in;
 * one write and one sync for everything that arrived in the meantime; a confirm and the records out. It has no queue,
 * no redelivery and no recovery. The results of brokers are reported as shares of the floor's results.
 */
import { open, type FileHandle } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { FLOOR, floorFrame, onFloorFrames } from './floor-frames.js'

/** Records that are on disk. The newest ones are also kept in memory; others are read back. */
interface Piece {
  readonly position: number
  readonly length: number
  readonly count: number
  bytes: Buffer | undefined
}

const KEPT_BYTES = 32 << 20
const DELIVER_BYTES = 256 << 10

class Floor {
  readonly #file: FileHandle
  #waiting: { readonly socket: Socket; readonly bytes: Buffer; readonly count: number }[] = []
  #acks = 0
  #isSyncing = false
  #position = 0
  readonly #pieces: Piece[] = []
  #keptFrom = 0
  #keptBytes = 0
  /** The only consumer, its credit, and its position: the index of the piece, and the byte in that piece. */
  #consumer: Socket | undefined
  #credit = 0
  #piece = 0
  #byte = 0
  #isReading = false

  constructor(file: FileHandle) {
    this.#file = file
  }

  serve(socket: Socket): void {
    socket.setNoDelay(true)
    onFloorFrames(
      socket,
      (type, count, payload) => {
        if (type === FLOOR.publish) this.#waiting.push({ socket, bytes: payload, count })
        else {
          this.#credit += count
          this.#consumer = socket
          if (type === FLOOR.ack) this.#acks += count
        }
      },
      () => {
        if (this.#waiting.length > 0 || this.#acks > 0) void this.#sync()
        void this.#deliver()
      },
    )
    socket.on('error', () => {})
    socket.on('close', () => {
      if (this.#consumer === socket) this.#consumer = undefined
    })
  }

  // Writes and syncs everything that has arrived, with one write and one sync; what arrives during the sync waits for
  // the next sync.
  async #sync(): Promise<void> {
    if (this.#isSyncing) return
    this.#isSyncing = true
    while (this.#waiting.length > 0 || this.#acks > 0) {
      const batch = this.#waiting
      this.#waiting = []
      const acks = Buffer.alloc(this.#acks > 0 ? 8 : 0)
      this.#acks = 0
      const bytes = Buffer.concat([...batch.map(({ bytes }) => bytes), acks])
      await this.#file.write(bytes, 0, bytes.length, this.#position)
      await this.#file.datasync()
      let position = this.#position
      this.#position += bytes.length
      const confirms = new Map<Socket, number>()
      for (const { socket, bytes, count } of batch) {
        this.#keep({ position, length: bytes.length, count, bytes })
        position += bytes.length
        confirms.set(socket, (confirms.get(socket) ?? 0) + count)
      }
      for (const [socket, count] of confirms) socket.write(floorFrame(FLOOR.confirm, count, 0))
      void this.#deliver()
    }
    this.#isSyncing = false
  }

  #keep(piece: Piece): void {
    this.#pieces.push(piece)
    this.#keptBytes += piece.length
    while (this.#keptBytes > KEPT_BYTES) {
      const oldest = this.#pieces[this.#keptFrom++]!
      this.#keptBytes -= oldest.length
      oldest.bytes = undefined
    }
  }

  async #deliver(): Promise<void> {
    if (this.#isReading) return
    this.#isReading = true
    while (this.#consumer !== undefined && this.#credit > 0 && this.#piece < this.#pieces.length) {
      const piece = this.#pieces[this.#piece]!
      if (piece.bytes === undefined) await this.#readFrom(this.#piece)
      this.#send(piece)
      // A piece that was read back from disk is no longer needed once it is sent.
      if (this.#byte !== piece.length) continue
      if (this.#piece < this.#keptFrom) piece.bytes = undefined
      this.#piece++
      this.#byte = 0
    }
    this.#isReading = false
  }

  // Reads the piece together with as many following pieces as fit into one large read.
  async #readFrom(first: number): Promise<void> {
    let end = first
    let length = 0
    while (end < this.#keptFrom && (length === 0 || length + this.#pieces[end]!.length <= DELIVER_BYTES))
      length = this.#pieces[end]!.position + this.#pieces[end++]!.length - this.#pieces[first]!.position
    const bytes = Buffer.allocUnsafeSlow(length)
    await this.#file.read(bytes, 0, length, this.#pieces[first]!.position)
    for (const piece of this.#pieces.slice(first, end)) {
      const at = piece.position - this.#pieces[first]!.position
      piece.bytes ??= bytes.subarray(at, at + piece.length)
    }
  }

  #send({ bytes, length }: Piece): void {
    let end = this.#byte
    let count = 0
    while (count < this.#credit && end < length) {
      end += 4 + bytes!.readUInt32LE(end)
      count++
    }
    this.#credit -= count
    this.#consumer!.cork()
    this.#consumer!.write(floorFrame(FLOOR.deliver, count, end - this.#byte))
    this.#consumer!.write(bytes!.subarray(this.#byte, end))
    this.#consumer!.uncork()
    this.#byte = end
  }
}

const [directory, port] = process.argv.slice(2)
const floor = new Floor(await open(join(directory!, 'floor.log'), 'w+'))
createServer((socket) => floor.serve(socket)).listen(Number(port), '127.0.0.1')
process.on('SIGTERM', () => process.exit())
