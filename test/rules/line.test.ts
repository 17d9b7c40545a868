/**
 * Tests of single rules of the line, and random histories: after each step, the line is compared with a plain search
 * for the eligible messages among all messages.
 */
import { expect, test } from 'vitest'
import { Chance } from '../simulation/chance.js'
import { CLEARED } from './lease.js'
import { Line, type LineMessage, type LineRules } from './line.js'
import { NO_EARLIER_LIVES } from './message.js'

interface Wanted {
  readonly priority?: number
  readonly key?: string
  readonly dueMs?: number
}

class Bench {
  nowMs = 1_000
  rules: LineRules
  line: Line<LineMessage>
  messages: LineMessage[] = []
  #next = 0

  constructor(rules: Partial<LineRules> = {}) {
    this.rules = { keyConcurrency: 1, onFail: 'block', ...rules }
    this.line = new Line(this.rules)
  }

  add({ priority = 0, key, dueMs = this.nowMs }: Wanted = {}): LineMessage {
    const content = {
      ...{ priority, key, id: undefined, replaces: false },
      ...{ delayMs: undefined, atMs: undefined, ttlMs: undefined },
    }
    const message: LineMessage = {
      ...{ offset: this.#next++, content, bytes: 1, publishedMs: this.nowMs, state: 'leased' },
      ...{ lineMs: dueMs, sinceMs: dueMs, isPlain: dueMs === this.nowMs, expiresMs: 0 },
      ...{ attempts: 0, earlier: NO_EARLIER_LIVES, ...CLEARED },
    }
    this.messages.push(message)
    this.line.add(message, this.nowMs)
    return message
  }

  fail(message: LineMessage, delayMs: number): void {
    message.attempts++
    message.isPlain = false
    message.lineMs = this.nowMs + delayMs
    this.line.retry(message, this.nowMs)
  }

  pass(ms: number): void {
    this.nowMs += ms
    const due = this.messages.filter(({ state, lineMs }) => state === 'scheduled' && lineMs <= this.nowMs)
    due.sort((a, b) => a.lineMs - b.lineMs || a.offset - b.offset)
    for (const message of due) this.line.arrive(message, this.nowMs)
  }

  remove(message: LineMessage): void {
    this.messages = this.messages.filter((other) => other !== message)
  }

  /** Delivers the next message. */
  take(): number | undefined {
    const first = this.line.first(this.messages)
    if (first !== undefined) this.line.take(first, this.nowMs)
    return first?.offset
  }

  takeAll(): number[] {
    const taken: number[] = []
    for (let offset = this.take(); offset !== undefined; offset = this.take()) taken.push(offset)
    return taken
  }
}

test('messages are delivered by priority, then by time, then by offset', () => {
  const bench = new Bench()
  bench.add()
  bench.add({ priority: 3 })
  bench.add({ priority: 3, dueMs: 1_050 })
  bench.pass(100)
  bench.add({ priority: 3 })
  bench.add()
  expect(bench.takeAll()).toEqual([1, 2, 3, 0, 4])
})

test('a scheduled message is not eligible before it is due', () => {
  const bench = new Bench()
  const message = bench.add({ dueMs: 1_050 })
  bench.pass(49)
  expect([message.state, bench.take()]).toEqual(['scheduled', undefined])
  bench.pass(1)
  expect(bench.line.eligibleSince(message)).toBe(1_050)
  expect(bench.take()).toBe(0)
})

test('messages of a key are delivered in order, one at a time or as many as the concurrency of the queue allows', () => {
  const bench = new Bench()
  const [first] = [bench.add({ key: 'a' }), bench.add({ key: 'a' }), bench.add({ key: 'b' })]
  expect(bench.takeAll()).toEqual([0, 2])
  bench.pass(10)
  bench.line.settled(first, bench.nowMs)
  expect(bench.line.eligibleSince(bench.messages[1]!)).toBe(1_010)
  expect(bench.takeAll()).toEqual([1])
  const two = new Bench({ keyConcurrency: 2 })
  for (let i = 0; i < 3; i++) two.add({ key: 'a' })
  expect(two.takeAll()).toEqual([0, 1])
})

test('a failed message blocks its key and is delivered next; with `skip` the other messages are delivered meanwhile', () => {
  for (const [onFail, meanwhile, afterwards] of [
    ['block', [], [0]],
    ['skip', [1], []],
  ] as const) {
    const bench = new Bench({ onFail })
    const first = bench.add({ key: 'a' })
    bench.add({ key: 'a' })
    bench.take()
    bench.fail(first, 50)
    expect(bench.takeAll(), onFail).toEqual(meanwhile)
    bench.pass(50)
    expect(bench.takeAll(), onFail).toEqual(afterwards)
  }
})

test('a released message keeps its place and its time', () => {
  const bench = new Bench()
  const first = bench.add({ key: 'a' })
  bench.add({ key: 'a' })
  const plain = bench.add()
  bench.take()
  bench.take()
  bench.pass(10)
  bench.line.release(first, bench.nowMs)
  bench.line.release(plain, bench.nowMs)
  expect(bench.line.eligibleSince(first)).toBe(1_000)
  expect(bench.takeAll()).toEqual([0, 2])
})

test('a message that is leased again does not free its key for another message', () => {
  const bench = new Bench()
  const first = bench.add({ key: 'a' })
  bench.add({ key: 'a' })
  bench.take()
  bench.line.release(first, bench.nowMs)
  bench.line.retake(first, bench.nowMs)
  expect([first.state, bench.line.keyOf(first)?.leased]).toEqual(['leased', 1])
  expect(bench.take()).toBeUndefined()
})

test('when the head of a key leaves, the next message becomes eligible at that time, but not before its own arrival', () => {
  const bench = new Bench()
  const first = bench.add({ key: 'a' })
  bench.pass(10)
  const second = bench.add({ key: 'a' })
  bench.pass(10)
  bench.line.leave(first, 1_005)
  bench.remove(first)
  expect(bench.line.eligibleSince(second)).toBe(1_010)
})

test('messages that were published after the clock was set back are placed after the earlier ones', () => {
  const bench = new Bench()
  bench.add({ key: 'a' })
  bench.add({})
  bench.nowMs = 500
  bench.add({ key: 'a' })
  bench.add({})
  const [first] = [bench.take()]
  expect(first).toBe(0)
  expect(bench.take()).toBe(1)
  expect(bench.take()).toBe(3)
})

test('a purge frees all keys', () => {
  const bench = new Bench()
  bench.add({ key: 'a' })
  bench.take()
  bench.line.clear()
  bench.messages = []
  bench.add({ key: 'a' })
  expect(bench.takeAll()).toEqual([1])
})

/** Finds the head of each key by a search among all messages, and records when it became eligible. */
class Search {
  readonly since = new Map<LineMessage, number>()

  head({ messages, rules }: Bench, key: string): LineMessage | undefined {
    const ofKey = messages.filter(({ content }) => content.key === key)
    const leased = ofKey.filter(({ state }) => state === 'leased').length
    const isRetrying = ofKey.some(({ state, attempts }) => state === 'scheduled' && attempts > 0)
    if (leased >= rules.keyConcurrency || (rules.onFail === 'block' && isRetrying)) return undefined
    const rank = ({ attempts }: LineMessage): number => (rules.onFail === 'block' && attempts > 0 ? 0 : 1)
    return ofKey
      .filter(({ state }) => state === 'ready')
      .toSorted((a, b) => rank(a) - rank(b) || a.lineMs - b.lineMs || a.offset - b.offset)[0]
  }

  /** Called when the state of the key has changed. `newcomer` is the message that became ready at `sinceMs`. */
  follow(bench: Bench, key: string, atMs: number, newcomer?: LineMessage, sinceMs?: number): void {
    const head = this.head(bench, key)
    for (const message of [...this.since.keys()])
      if (message.content.key === key && message !== head) this.since.delete(message)
    if (head !== undefined && !this.since.has(head))
      this.since.set(head, head === newcomer ? sinceMs! : Math.max(atMs, head.lineMs))
  }
}

test('random histories agree with a search among all messages', () => {
  let compared = 0
  for (let seed = 1; seed <= 12; seed++) {
    const chance = new Chance(seed)
    const bench = new Bench({ keyConcurrency: chance.int(1, 2), onFail: chance.pick(['block', 'skip']) })
    const search = new Search()
    const leases = new Map<LineMessage, number | undefined>()
    const followAll = (message: LineMessage, sinceMs?: number): void => {
      if (message.content.key !== undefined)
        search.follow(bench, message.content.key, bench.nowMs, message, sinceMs)
    }
    for (let step = 0; step < 200; step++) {
      const held = [...leases.keys()]
      const inLine = bench.messages.filter(({ state }) => state === 'ready' || state === 'scheduled')
      const kind = chance.int(0, 8)
      if (kind <= 1) {
        const key = chance.pick([undefined, 'a', 'b'])
        const dueMs = bench.nowMs + chance.pick([0, 0, 40])
        const message = bench.add({
          priority: chance.int(0, 1),
          ...(key === undefined ? {} : { key }),
          dueMs,
        })
        followAll(message, message.lineMs)
      } else if (kind === 2) {
        // Time passes one millisecond at a time, so that each message that becomes due is handled separately.
        for (let ms = chance.int(1, 30); ms > 0; ms--) {
          bench.nowMs++
          const due = bench.messages.filter(
            ({ state, lineMs }) => state === 'scheduled' && lineMs <= bench.nowMs,
          )
          for (const message of due) {
            bench.line.arrive(message, bench.nowMs)
            followAll(message, message.lineMs)
          }
        }
      } else if (kind <= 4) {
        const first = bench.line.first(bench.messages)
        if (first === undefined) continue
        leases.set(first, bench.line.eligibleSince(first))
        bench.line.take(first, bench.nowMs)
        followAll(first)
      } else if (kind === 5 && held.length > 0) {
        const message = chance.pick(held)
        bench.line.release(message, bench.nowMs)
        followAll(message, leases.get(message))
        leases.delete(message)
      } else if (kind === 6 && held.length > 0) {
        const message = chance.pick(held)
        leases.delete(message)
        if (chance.hit(0.5)) bench.fail(message, chance.pick([0, 25]))
        else {
          bench.line.settled(message, bench.nowMs)
          bench.remove(message)
        }
        followAll(message, message.lineMs)
      } else if (kind === 7 && inLine.length > 0) {
        const message = chance.pick(inLine)
        bench.line.leave(message, bench.nowMs)
        if (chance.hit(0.5)) {
          message.lineMs = bench.nowMs + chance.pick([0, 25])
          message.isPlain = false
          bench.line.enter(message, bench.nowMs)
        } else bench.remove(message)
        search.since.delete(message)
        followAll(message, message.lineMs)
      } else if (kind === 8 && chance.hit(0.2)) {
        bench.rules = { keyConcurrency: chance.int(1, 2), onFail: chance.pick(['block', 'skip']) }
        bench.line.reorder(bench.rules, bench.messages)
        search.since.clear()
        for (const key of ['a', 'b']) {
          const head = search.head(bench, key)
          if (head !== undefined) search.follow(bench, key, bench.nowMs, head, head.lineMs)
        }
      }
      const expected = bench.messages.map((message) => {
        if (message.content.key !== undefined) return search.since.get(message)
        return message.state === 'ready' ? message.lineMs : undefined
      })
      const since = bench.messages.map((message) => bench.line.eligibleSince(message))
      expect(since, `seed ${seed}, step ${step}`).toEqual(expected)
      const order = bench.messages
        .flatMap((message, at) => (expected[at] === undefined ? [] : [{ message, sinceMs: expected[at] }]))
        .toSorted(
          (a, b) =>
            b.message.content.priority - a.message.content.priority ||
            a.sinceMs - b.sinceMs ||
            a.message.offset - b.message.offset,
        )
      expect(bench.line.first(bench.messages), `seed ${seed}, step ${step}`).toBe(order[0]?.message)
      compared += expected.length
    }
  }
  expect(compared).toBeGreaterThan(5_000)
})
