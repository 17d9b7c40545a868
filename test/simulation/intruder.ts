/**
 * A simulated peer that violates the protocol: the broker must close its connection, without an effect on other
 * clients.
 */
import { FRAME_HEADER_BYTES, OP, writeFrameHeader, type HelloOk } from '@sluice/protocol'
import { Client } from './client.js'

export class Intruder extends Client {
  #sent = 0

  get isDone(): boolean {
    return true
  }

  override act(): void {
    const { chance, isHealing } = this.around
    if (isHealing) {
      if (this.link !== undefined) this.abandon()
      return
    }
    if (this.link === undefined) super.act()
    // In most cases the violation follows the handshake.
    else if (this.isOpen || chance.hit(0.05)) this.work()
  }

  protected opened(_ok: HelloOk): void {}

  protected lost(): void {
    this.#sent = 0
  }

  protected work(): void {
    const { chance } = this.around
    if (++this.#sent > 3) {
      this.abandon()
      return
    }
    const kind = chance.int(0, 3)
    if (kind === 0) this.sendBytes(chance.bytes(chance.int(1, 60)))
    else if (kind === 1) {
      // The frame announces more bytes than the limit.
      const bytes = new Uint8Array(FRAME_HEADER_BYTES)
      writeFrameHeader(bytes, 0, 0x7fff_ffff, OP.PUBLISH, 0, 0)
      this.sendBytes(bytes)
    } else if (kind === 2) {
      this.send(chance.int(0, 255), chance.int(0, 3), chance.int(0, 9), chance.bytes(chance.int(0, 40)))
    } else {
      this.send(
        chance.pick([OP.SETTLE, OP.CREDIT, OP.STARTED, OP.STARTING, OP.SUBSCRIBE, OP.UNSUBSCRIBE]),
        1,
        1,
        chance.bytes(24),
      )
    }
  }

  protected frame(): void {}
}
