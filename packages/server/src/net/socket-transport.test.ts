import { Socket } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { SocketTransport } from './socket-transport.js'

/** Counts; nothing is connected. */
class Counting extends Socket {
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

it('reads on in the next turn after a rest', async () => {
  const socket = new Counting()
  const transport = new SocketTransport(socket)
  transport.rest()
  expect(socket.reads).toBe(false)
  await turn()
  expect(socket.reads).toBe(true)
})

it('stays paused after a rest if it was paused meanwhile, or before', async () => {
  const socket = new Counting()
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

it('rests to the end of the turn, also when it is resumed in it', async () => {
  const socket = new Counting()
  const transport = new SocketTransport(socket)
  transport.pause()
  transport.rest()
  transport.resume()
  expect(socket.reads).toBe(false)
  await turn()
  expect(socket.reads).toBe(true)
})
