import { Socket } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { SocketTransport } from './socket-transport.js'

/** An unconnected socket that records whether it is being read. */
class RecordingSocket extends Socket {
  reads = true

  override pause(): this {
    this.reads = false
    return this
  }

  override resume(): this {
    this.reads = true
    return this
  }
}

it('a rest ends in the next turn', async () => {
  const socket = new RecordingSocket()
  const transport = new SocketTransport(socket)
  transport.rest()
  expect(socket.reads).toBe(false)
  await turn()
  expect(socket.reads).toBe(true)
})

it('the socket stays paused after a rest if it was paused before or during the rest', async () => {
  const socket = new RecordingSocket()
  const transport = new SocketTransport(socket)
  transport.rest()
  transport.pause()
  await turn()
  expect(socket.reads).toBe(false)
  transport.rest()
  await turn()
  expect(socket.reads).toBe(false)
  transport.resume()
  expect(socket.reads).toBe(true)
})

it('a rest lasts until the next turn, even if the socket is resumed earlier', async () => {
  const socket = new RecordingSocket()
  const transport = new SocketTransport(socket)
  transport.pause()
  transport.rest()
  transport.resume()
  expect(socket.reads).toBe(false)
  await turn()
  expect(socket.reads).toBe(true)
})
