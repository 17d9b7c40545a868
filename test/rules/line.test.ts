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

const NO_RATE = { keyRateMessages: 0, keyRatePerMs: 1_000 }

class Bench {
  nowMs = 1_000
  rules: LineRules
  line: Line<LineMessage>
  messages: LineMessage[] = []
  #next = 0

  constructor(rules: Partial<LineRules> = {}) {
    this.rules = { keyConcurrency: 1, onFail: 'block', ...NO_RATE, ...rules }
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
    for (const message of due) this.line.arrive(message)
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

test('a message that becomes ready late is eligible since its due time or, if that is later, since its key is free', () => {
  for (const [freeMs, sinceMs] of [
    [1_040, 1_050],
    [1_070, 1_070],
  ] as const) {
    const bench = new Bench()
    const first = bench.add({ key: 'a' })
    const late = bench.add({ key: 'a', dueMs: 1_050 })
    bench.take()
    bench.nowMs = freeMs
    bench.line.settled(first, freeMs)
    bench.remove(first)
    bench.nowMs = 1_080
    bench.line.arrive(late)
    expect(bench.line.eligibleSince(late)).toBe(sinceMs)
  }
})

test('a message with a key waits until those that are due before it are ready', () => {
  const bench = new Bench()
  const due = bench.add({ key: 'a', dueMs: 1_050 })
  const failed = bench.add({ key: 'b' })
  bench.take()
  bench.nowMs = 1_060
  const [later, plain] = [bench.add({ key: 'a' }), bench.add()]
  bench.fail(failed, 0)
  expect([due, later, failed, plain].map(({ state }) => state)).toEqual([
    'scheduled',
    'scheduled',
    'scheduled',
    'ready',
  ])
  const order = []
  for (let next = bench.line.firstDue(1_060); next !== undefined; next = bench.line.firstDue(1_060)) {
    order.push(next)
    bench.line.arrive(next)
  }
  expect(order).toEqual([due, failed, later])
  expect(bench.takeAll()).toEqual([0, 1, 3])
})

test('a key that becomes free through other rules is eligible from then on, and messages keep their places', () => {
  const bench = new Bench({ keyConcurrency: 1, onFail: 'skip' })
  const [first, second] = [bench.add({ key: 'a' }), bench.add({ key: 'a' })]
  bench.take()
  bench.pass(10)
  bench.line.changeRules({ keyConcurrency: 2, onFail: 'skip', ...NO_RATE }, bench.nowMs)
  expect(bench.line.eligibleSince(second)).toBe(1_010)
  bench.fail(first, 0)
  bench.line.changeRules({ keyConcurrency: 1, onFail: 'block', ...NO_RATE }, bench.nowMs)
  expect(bench.takeAll()).toEqual([1])
})

/** Finds the head of each key by a search among all messages, and records when it became eligible. */
class Search {
  readonly since = new Map<LineMessage, number>()
  /** Lowest time at which the next head of a key can become eligible. */
  readonly #leastMs = new Map<string, number>()
  readonly #ranks = new Map<LineMessage, number>()

  #isFree({ messages, rules }: Bench, key: string): boolean {
    const ofKey = messages.filter(({ content }) => content.key === key)
    const leased = ofKey.filter(({ state }) => state === 'leased').length
    const isRetrying = ofKey.some(({ state, attempts }) => state === 'scheduled' && attempts > 0)
    return leased < rules.keyConcurrency && !(rules.onFail === 'block' && isRetrying)
  }

  #head({ messages }: Bench, key: string): LineMessage | undefined {
    const rank = (message: LineMessage): number => this.#ranks.get(message)!
    return messages
      .filter(({ content, state }) => content.key === key && state === 'ready')
      .toSorted((a, b) => rank(a) - rank(b) || a.lineMs - b.lineMs || a.offset - b.offset)[0]
  }

  /** Called when the message has become ready. */
  entered({ rules }: Bench, message: LineMessage): void {
    this.#ranks.set(message, rules.onFail === 'block' && message.attempts > 0 ? 0 : 1)
  }

  /** Called when the state of the key has changed. `released` is a message that returned, eligible since `sinceMs`. */
  follow(bench: Bench, key: string, atMs: number, released?: LineMessage, sinceMs?: number): void {
    const isFree = this.#isFree(bench, key)
    const head = isFree ? this.#head(bench, key) : undefined
    for (const message of [...this.since.keys()])
      if (message.content.key === key && message !== head) this.since.delete(message)
    const leastMs = this.#leastMs.get(key) ?? 0
    if (isFree && head === undefined) this.#leastMs.set(key, Math.max(leastMs, atMs))
    if (head === undefined || this.since.has(head)) return
    const from = head === released ? sinceMs! : Math.max(atMs, leastMs, head.lineMs)
    this.since.set(head, from)
    this.#leastMs.set(key, from)
  }
}

test('random histories agree with a search among all messages', () => {
  let compared = 0
  for (let seed = 1; seed <= 12; seed++) {
    const chance = new Chance(seed)
    const bench = new Bench({ keyConcurrency: chance.int(1, 2), onFail: chance.pick(['block', 'skip']) })
    const search = new Search()
    const leases = new Map<LineMessage, number | undefined>()
    const followAll = (message: LineMessage, releasedSinceMs?: number): void => {
      const { key } = message.content
      if (key === undefined) return
      if (message.state === 'ready') search.entered(bench, message)
      const released = releasedSinceMs === undefined ? undefined : message
      search.follow(bench, key, bench.nowMs, released, releasedSinceMs)
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
        followAll(message)
      } else if (kind === 2) {
        // Time passes one millisecond at a time, so that each message that becomes due is handled separately.
        for (let ms = chance.int(1, 30); ms > 0; ms--) {
          bench.nowMs++
          const due = bench.messages.filter(
            ({ state, lineMs }) => state === 'scheduled' && lineMs <= bench.nowMs,
          )
          for (const message of due) {
            bench.line.arrive(message)
            followAll(message)
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
        followAll(message)
      } else if (kind === 7 && inLine.length > 0) {
        const message = chance.pick(inLine)
        bench.line.leave(message, bench.nowMs)
        if (chance.hit(0.5)) {
          message.lineMs = bench.nowMs + chance.pick([0, 25])
          message.isPlain = false
          bench.line.enter(message, bench.nowMs)
        } else bench.remove(message)
        search.since.delete(message)
        followAll(message)
      } else if (kind === 8 && chance.hit(0.2)) {
        bench.rules = {
          keyConcurrency: chance.int(1, 2),
          onFail: chance.pick(['block', 'skip']),
          ...NO_RATE,
        }
        bench.line.changeRules(bench.rules, bench.nowMs)
        for (const key of ['a', 'b']) search.follow(bench, key, bench.nowMs)
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
