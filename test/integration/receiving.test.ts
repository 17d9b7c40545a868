/**
 * The budget for half-received frames, with a listener of its own: what counts against it, and who gives way when it is
 * used up.
 */
import { LIMITS, MESSAGE_OVERHEAD_BYTES, OP, queueName } from '@sluice/protocol'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Broker } from '../../packages/server/src/broker/broker.js'
import { MemoryLog } from '../../packages/server/src/log/memory-log.js'
import { Listener } from '../../packages/server/src/net/listener.js'
import { SESSION_DEFAULTS } from '../../packages/server/src/session/session.js'
import { Peer, batch, frame, publishFrame } from '../fault/peer.js'
import { until } from '../fault/processes.js'

const BUDGET_BYTES = 8 << 20
const QUEUE = 'q'

let broker: Broker
let listener: Listener
let port = 0
const peers: Peer[] = []

beforeEach(async () => {
  broker = await Broker.open({
    log: new MemoryLog({ segmentBytes: 64 << 20 }),
    now: () => Date.now(),
    random: () => 0.5,
    defer: (endTurn) => void setImmediate(endTurn),
    onFatal: (error) => {
      throw error
    },
  })
  broker.ensure({ name: queueName(QUEUE), options: {}, update: false })
  listener = new Listener(broker, {
    host: '127.0.0.1',
    port: 0,
    connectionsMax: 1_000,
    receiveBytesMax: BUDGET_BYTES,
    settings: { ...SESSION_DEFAULTS, frameBytesMax: LIMITS.frameBytesDefault + MESSAGE_OVERHEAD_BYTES },
    now: () => Date.now(),
    onEvent: () => {},
    onTrouble: (_what, error) => {
      throw error
    },
  })
  port = (await listener.listen()).port
})

afterEach(async () => {
  await Promise.all(peers.splice(0).map((peer) => peer.dispose()))
  await listener.stop(100)
})

async function open(): Promise<Peer> {
  const peer = await Peer.open(port)
  peers.push(peer)
  return peer
}

test('a frame that is whole counts no more, on however many connections', async () => {
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

test('the connection that takes most gives way, whoever sends last', async () => {
  const greedy: Peer[] = []
  const head = frame(OP.PUBLISH, 0, 0, new Uint8Array(3 << 20))
  for (let i = 0; i < 2; i++) greedy.push(await open())
  for (const peer of greedy) peer.send(head.subarray(0, head.length - 1))
  await until('both to be half received', () => listener.receiveBytes >= 6 << 20)
  const whole = publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(1 << 20) }]))
  const modest: Peer[] = []
  for (let i = 0; i < 5; i++) {
    modest.push(await open())
    modest[i]!.send(whole.subarray(0, whole.length - 1))
  }
  await until('the greedy to be closed', () => greedy.some((peer) => peer.isClosed))
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
  expect(broker.info(queueName(QUEUE)).published).toBe(5)
})

test('a connection that breaks off gives back what it took', async () => {
  const whole = publishFrame(QUEUE, batch(1, [{ payload: new Uint8Array(1 << 20) }]))
  for (let i = 0; i < 20; i++) {
    const peer = await open()
    peer.send(whole.subarray(0, whole.length - 1))
    await until('it to be half received', () => listener.receiveBytes >= 1 << 20)
    peer.socket.destroy()
    await until('it to be given back', () => listener.receiveBytes === 0)
  }
  expect(listener.connections).toBe(0)
})
