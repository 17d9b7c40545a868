/**
 * A listener without a broker: the budget for incomplete frames, the connections that are closed when the budget is used
 * up, and connections that the system cannot accept.
 */
import { LIMITS, MESSAGE_OVERHEAD_BYTES, OP, queueName, type SluiceError } from '@sluice/protocol'
import type * as Net from 'node:net'
import { connect } from 'node:net'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Listener } from '../../packages/server/src/net/listener.js'
import type { Peer as NetPeer } from '../../packages/server/src/net/peer.js'
import { Session } from '../../packages/server/src/session/session.js'
import { SESSION_DEFAULTS } from '../../packages/server/src/session/settings.js'
import { batch, frame, publishFrame } from '../rig/frames.js'
import { Peer } from '../rig/peer.js'
import { until } from '../rig/wait.js'

// The servers of the listener, on which the test emits the errors of the system.
const servers = vi.hoisted(() => [] as Net.Server[])
vi.mock('node:net', async (original) => {
  const net = await original<typeof Net>()
  const createServer = (...given: Parameters<typeof net.createServer>): Net.Server => {
    const server = net.createServer(...given)
    servers.push(server)
    return server
  }
  return { ...net, createServer }
})

const BUDGET_BYTES = 8 << 20
const QUEUE = 'q'

let broker: Broker
let listener: Listener
let port = 0
let mayHaveTrouble = false
const peers: Peer[] = []
const troubles: string[] = []

beforeEach(async () => {
  troubles.length = 0
  broker = await Broker.open({
    log: new MemoryLog({ segmentBytes: 64 << 20 }),
    now: () => Date.now(),
    random: () => 0.5,
    defer: (endTurn) => void setImmediate(endTurn),
    onFatal: (error) => {
      throw error
    },
  })
  broker.catalog.ensure({ name: queueName(QUEUE), options: {}, update: false })
  const settings = { ...SESSION_DEFAULTS, frameBytesMax: LIMITS.frameBytesDefault + MESSAGE_OVERHEAD_BYTES }
  listener = new Listener(broker.turn, {
    host: '127.0.0.1',
    port: 0,
    connectionsMax: 1_000,
    receiveBytesMax: BUDGET_BYTES,
    newPeer: (transport, nowMs, onClosed) => new Session(broker, transport, settings, nowMs, onClosed),
    now: () => Date.now(),
    onEvent: () => {},
    onFailure: (what, error) => troubles.push(`${what}: ${String(error)}`),
  })
  port = (await listener.listen()).port
})

afterEach(async () => {
  if (!mayHaveTrouble) expect(troubles).toEqual([])
  mayHaveTrouble = false
  await Promise.all(peers.splice(0).map((peer) => peer.dispose()))
  await listener.stop(100)
})

async function open(): Promise<Peer> {
  const peer = await Peer.open(port)
  peers.push(peer)
  return peer
}

test('a complete frame no longer counts towards the budget, on any number of connections', async () => {
  const bytes = 200_000
  const crew = await Promise.all(Array.from({ length: 3 * Math.ceil(BUDGET_BYTES / bytes) }, open))
  const whole = publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(bytes) }]))
  for (const peer of crew) {
    peer.send(whole)
    await peer.frame(OP.PUBLISH_OK)
  }
  expect(listener.receiveBytes).toBe(0)
  expect(await Promise.all(crew.map((peer) => peer.answers()))).toEqual(crew.map(() => true))
})

test('the connection with the most incomplete bytes is closed, even if another connection sends last', async () => {
  const greedy: Peer[] = []
  const head = frame(OP.PUBLISH, 0, 0, new Uint8Array(3 << 20))
  for (let i = 0; i < 2; i++) greedy.push(await open())
  for (const peer of greedy) peer.send(head.subarray(0, head.length - 1))
  await until('both frames to be half received', () => listener.receiveBytes >= 6 << 20)
  const whole = publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(1 << 20) }]))
  const modest: Peer[] = []
  for (let i = 0; i < 5; i++) {
    modest.push(await open())
    modest[i]!.send(whole.subarray(0, whole.length - 1))
  }
  await until('the greedy connection to be closed', () => greedy.some((peer) => peer.isClosed))
  const victim = greedy.find((peer) => peer.isClosed)!
  const fault = await victim.fault()
  expect({ code: fault.code, scope: fault.scope, retryable: fault.retryable }).toEqual({
    code: 'MEMORY_FULL',
    scope: 'connection',
    retryable: true,
  })
  expect(fault.message).toContain(String(BUDGET_BYTES))
  expect(fault.retryAfterMs).toBeGreaterThan(0)
  for (const peer of modest) peer.send(whole.subarray(whole.length - 1))
  for (const peer of modest) await peer.frame(OP.PUBLISH_OK)
  expect(listener.receiveBytes).toBeLessThanOrEqual(BUDGET_BYTES)
  expect(broker.catalog.info(queueName(QUEUE)).published).toBe(5)
})

test('a connection that breaks frees its part of the budget', async () => {
  const whole = publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(1 << 20) }]))
  for (let i = 0; i < 20; i++) {
    const peer = await open()
    peer.send(whole.subarray(0, whole.length - 1))
    await until('the frame to be half received', () => listener.receiveBytes >= 1 << 20)
    peer.socket.destroy()
    await until('the budget to be free', () => listener.receiveBytes === 0)
  }
  expect(listener.connections).toBe(0)
})

test('a connection that cannot be accepted is reported once, and the listener opens the port again after a pause', async () => {
  mayHaveTrouble = true
  const before = await open()
  const failed = servers.at(-1)!
  const error = Object.assign(new Error('accept EMFILE'), { code: 'EMFILE' })
  // The system repeats the error while a connection waits.
  for (let i = 0; i < 10; i++) failed.emit('error', error)
  expect(troubles).toEqual(['connections cannot be accepted: Error: accept EMFILE'])
  expect(failed.listening).toBe(false)
  expect(await before.answers()).toBe(true)
  await until('the port to be open again', () => servers.at(-1) !== failed && servers.at(-1)!.listening)
  expect(await (await open()).answers()).toBe(true)
  // A connection was accepted in between, so the error is reported again.
  servers.at(-1)!.emit('error', error)
  expect(troubles).toHaveLength(2)
  expect(listener.connections).toBe(2)
})

test('the listener works with sessions of another protocol', async () => {
  const calls: string[] = []
  const events: string[] = []
  const other = new Listener(broker.turn, {
    host: '127.0.0.1',
    port: 0,
    connectionsMax: 1,
    receiveBytesMax: 10,
    newPeer: (transport, _nowMs, onClosed) => {
      let heldBytes = 0
      let isClosed = false
      const close = (call: string, why?: SluiceError): void => {
        if (isClosed) return
        isClosed = true
        calls.push(call)
        onClosed(peer, why)
        transport.end()
      }
      const peer: NetPeer = {
        label: 'echo',
        get heldBytes() {
          return heldBytes
        },
        isIdle: true,
        receive: (chunk) => {
          heldBytes += chunk.length
          calls.push(`receive ${Buffer.from(chunk).toString()}`)
          transport.write(Uint8Array.from(chunk), () => {})
        },
        inputEnded: () => close('inputEnded'),
        disconnected: () => void calls.push('disconnected'),
        refuse: () => void calls.push('refuse'),
        tick: () => {},
        goodbye: () => void calls.push('goodbye'),
        end: () => close('end'),
        fail: (error) => close(`fail ${error.code}`, error),
      }
      return peer
    },
    now: () => Date.now(),
    onEvent: (event, _address, label, error) => events.push(`${event} ${label} ${error?.code ?? ''}`),
    onFailure: (what, error) => troubles.push(`${what}: ${String(error)}`),
  })
  const { port: otherPort } = await other.listen()
  const socket = connect(otherPort, '127.0.0.1')
  let echoed = ''
  socket.on('data', (chunk) => (echoed += chunk.toString()))
  socket.write('hello')
  await until('the echo', () => echoed === 'hello')
  expect(other.receiveBytes).toBe(5)
  socket.write(' and goodbye')
  await until('the end', () => calls.includes('disconnected'))
  expect(calls).toEqual(['receive hello', 'receive  and goodbye', 'fail MEMORY_FULL', 'disconnected'])
  const last = connect(otherPort, '127.0.0.1')
  await until('a connection', () => events.length === 3)
  await other.stop(1_000)
  await until('the end', () => calls.length === 7)
  last.destroy()
  expect(calls.slice(4)).toEqual(['goodbye', 'end', 'disconnected'])
  expect(events).toEqual(['connected echo ', 'closed echo MEMORY_FULL', 'connected echo ', 'closed echo '])
  expect([other.connections, other.receiveBytes]).toEqual([0, 0])
})
