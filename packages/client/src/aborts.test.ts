import { OP } from '@sluice/protocol'
import { getEventListeners } from 'node:events'
import { describe, expect, it } from 'vitest'
import type { Sluice } from './client.js'
import { addAbortListener, removeAbortListener } from './aborts.js'
import { control, Peer, until } from './testing/peer.js'

describe('listeners of one signal', () => {
  it('share one listener, which is removed with the last of them', () => {
    const { signal } = new AbortController()
    const listeners = Array.from({ length: 5_000 }, () => () => {})
    for (const listener of listeners) addAbortListener(signal, listener)
    expect(getEventListeners(signal, 'abort').length).toBe(1)
    for (const listener of listeners.slice(1)) removeAbortListener(signal, listener)
    expect(getEventListeners(signal, 'abort').length).toBe(1)
    removeAbortListener(signal, listeners[0]!)
    removeAbortListener(signal, listeners[0]!)
    expect(getEventListeners(signal, 'abort').length).toBe(0)
    addAbortListener(signal, listeners[0]!)
    expect(getEventListeners(signal, 'abort').length).toBe(1)
  })

  it('are each called once, unless they were removed', () => {
    const controller = new AbortController()
    const { signal } = controller
    const called: number[] = []
    const listeners = [0, 1, 2, 3].map((n) => () => {
      called.push(n)
      removeAbortListener(signal, listeners[1]!)
    })
    for (const listener of listeners) addAbortListener(signal, listener)
    removeAbortListener(signal, listeners[2]!)
    controller.abort()
    expect(called).toEqual([0, 3])
    expect(getEventListeners(signal, 'abort').length).toBe(0)
  })

  it('of different signals are independent', () => {
    const [a, b] = [new AbortController(), new AbortController()]
    let called = 0
    const listener = (): void => void called++
    addAbortListener(a.signal, listener)
    addAbortListener(b.signal, listener)
    a.abort()
    expect(called).toBe(1)
    b.abort()
    expect(called).toBe(2)
  })
})

describe('one signal for many calls', () => {
  const calls: [string, (sluice: Sluice, signal: AbortSignal) => Promise<unknown>][] = [
    ['publish', (sluice, signal) => sluice.publish('q', 'x', { signal })],
    ['publishBatch', (sluice, signal) => sluice.publishBatch('q', [{ body: 'x' }], { signal })],
    ['atomic', (sluice, signal) => sluice.atomic((tx) => tx.publish('q', 'x'), { signal })],
    ['pull', (sluice, signal) => sluice.pull('q', { wait: '1m', signal })],
    ['queues.get', (sluice, signal) => sluice.queues.get('q', { signal })],
    ['consume', (sluice, signal) => sluice.consume('q', { signal }, () => {}).closed],
    ['messages', (sluice, signal) => sluice.messages('q', { signal }).next()],
  ]
  for (const [name, call] of calls) {
    it(`has one listener for fifty calls of ${name}, and none after they have ended`, async () => {
      const peer = new Peer()
      const sluice = await peer.connect()
      const controller = new AbortController()
      const { signal } = controller
      const over = Promise.allSettled(Array.from({ length: 50 }, () => call(sluice, signal)))
      expect(getEventListeners(signal, 'abort').length).toBe(name === 'atomic' ? 0 : 1)
      await until(() => getEventListeners(signal, 'abort').length === 1)
      controller.abort()
      await over
      expect(getEventListeners(signal, 'abort').length).toBe(0)
      await sluice.close({ timeout: 0 })
    })
  }

  it('has no listener once the calls are answered', async () => {
    const peer = new Peer()
    peer.confirmAll()
    peer.replies[OP.GET] = (frame, link) => link.result(frame, { name: control(frame)['name'] })
    const sluice = await peer.connect()
    const { signal } = new AbortController()
    await Promise.allSettled(
      Array.from({ length: 50 }, () => [
        sluice.publish('q', 'x', { signal }),
        sluice.queues.get('q', { signal }),
        sluice.pull('q', { signal }),
      ]).flat(),
    )
    expect(getEventListeners(signal, 'abort').length).toBe(0)
    await sluice.close()
  })
})
