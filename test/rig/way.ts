/** A proxy that can cut its connections, stay closed, and lead to another broker. */
import { createConnection, createServer, type AddressInfo, type Socket } from 'node:net'

export class Way {
  /** Port of the broker to which new connections lead. */
  port: number
  /** Whether new connections are accepted. */
  isOpen = true
  readonly #sockets = new Set<Socket>()
  readonly #server = createServer((near) => {
    if (!this.isOpen) {
      near.destroy()
      return
    }
    const far = createConnection(this.port, '127.0.0.1')
    this.#join(near, far)
    this.#join(far, near)
  })

  private constructor(port: number) {
    this.port = port
  }

  static async to(port: number): Promise<Way> {
    const way = new Way(port)
    await new Promise<void>((resolve) => way.#server.listen(0, '127.0.0.1', resolve))
    return way
  }

  get ownPort(): number {
    return (this.#server.address() as AddressInfo).port
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  close(): void {
    this.cut()
    this.#server.close()
  }

  #join(one: Socket, other: Socket): void {
    this.#sockets.add(one)
    one
      .on('error', () => {})
      .on('close', () => {
        this.#sockets.delete(one)
        other.destroy()
      })
    one.pipe(other)
  }
}
