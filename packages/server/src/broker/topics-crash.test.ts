/**
 * Random bindings and publishes to topics, with a crash at any entry: each publish is in all of its targets or in none,
 * in the order of the publishes, and the bindings route as they are listed. Planted mistakes show that this is checked.
 */
import { headerMatch, queueName, topicPattern, type HeaderMatch } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Contents } from '../queue/contents.js'
import { Definitions } from '../state/definitions.js'
import { Bench, batchOf } from '../testing/bench.js'
import { applyDefinitions, type PlainDefinitions } from '../testing/definitions.js'
import { numbered, peeked, queueOf } from '../testing/sharing.js'
import { PatternTrie } from './pattern-trie.js'
import { TIMEOUT_MS, runs, seedsFrom } from '../../../../test/amount.js'
import { hasHeaders, matchesTopic } from '../../../../test/rules/topic.js'
import { Chance } from '../../../../test/simulation/chance.js'
import { replaced } from '../../../../test/simulation/defects.js'

const NAMES = ['a', 'b', 'c', 'd', 'e'].map(queueName)
const OPTIONS = { segmentBytes: 64 << 10, checkpointBytes: 8 << 10, keepsSnapshots: true }

interface Scene {
  readonly bench: Bench
  /** The numbers of the messages that each queue must have, in order, by the id of the queue. */
  readonly expected: ReadonlyMap<number, readonly number[]>
  readonly targets: number
}

/** What the listed bindings say about a message. */
function targetsOf(bench: Bench, topic: string, headers: Readonly<Record<string, string>>): string[] {
  const { bindings, more } = bench.broker.topics.list({ pattern: undefined, target: undefined, after: 0 })
  expect(more).toBe(false)
  const matching = bindings.filter(
    ({ pattern, headers: required }) =>
      matchesTopic(pattern, topic) && hasHeaders(headerMatch(required), headers),
  )
  return [...new Set(matching.map(({ target }) => target))].toSorted()
}

function isThere(bench: Bench, name: (typeof NAMES)[number]): boolean {
  try {
    queueOf(bench, name)
    return true
  } catch {
    return false
  }
}

async function scene(seed: number, operations: number): Promise<Scene> {
  const chance = new Chance(seed)
  const bench = await new Bench(OPTIONS).open()
  for (const name of NAMES) bench.ensure({}, name)
  const levels = (of: readonly string[]): string =>
    Array.from({ length: chance.int(1, 3) }, () => chance.pick(of)).join('.')
  const expected = new Map<number, number[]>()
  let targets = 0
  for (let number = 0; number < operations; number++) {
    const name = chance.pick(NAMES)
    bench.broker.turn.begin()
    if (number < 5 || chance.hit(0.15)) {
      const match: HeaderMatch | undefined = chance.hit(0.7)
        ? undefined
        : { kind: chance.pick(['all', 'any']), headers: chance.pick([{ x: '1' }, { x: '1', y: '1' }]) }
      const pattern = topicPattern(levels(['a', 'b', '*', '#']))
      bench.broker.topics.bind({ pattern, target: name, match })
    }
    if (chance.hit(0.05)) {
      const { bindings } = bench.broker.topics.list({ pattern: undefined, target: name, after: 0 })
      for (const { pattern, headers } of bindings.slice(0, 2)) {
        const match = headers === undefined ? undefined : headerMatch(headers)
        bench.broker.topics.unbind({ pattern: topicPattern(pattern), target: name, match })
      }
    }
    if (chance.hit(0.06)) {
      bench.broker.catalog.delete(name)
      bench.ensure({}, name)
    }
    const topic = levels(['a', 'b'])
    const headers: Record<string, string> = chance.hit(0.5)
      ? {}
      : { x: '1', ...(chance.hit(0.5) && { y: '1' }) }
    const wanted = targetsOf(bench, topic, headers)
    const message = numbered(number, { bodyBytes: chance.int(0, 900) })
    const bytes = batchOf([{ ...message, headers: { ...headers, ...message.headers } }], ++bench.number)
    const batch = { bytes, at: 0, end: bytes.length }
    expect(bench.broker.topics.publish(bench.producer(), `#?${topic}`, batch, 0)).toBe(wanted.length)
    for (const target of wanted) {
      const { id } = queueOf(bench, queueName(target))
      expected.set(id, [...(expected.get(id) ?? []), number])
    }
    targets += wanted.length
    if (chance.hit(0.4)) await bench.pass(chance.int(0, 30))
    if (chance.hit(0.03)) await bench.fill(8 << 10)
  }
  await bench.settle()
  bench.broker.audit()
  return { bench, expected, targets }
}

/** Starts a broker on every `step`th snapshot of the log. Returns the number of starts from a checkpoint. */
async function starts({ bench, expected }: Scene, step: number): Promise<number> {
  const { snapshots } = bench
  let fromPages = 0
  const known: PlainDefinitions = new Map()
  for (const [at, snapshot] of snapshots.entries()) {
    const entry = snapshot.entries.at(-1)
    if (entry !== undefined) applyDefinitions(known, entry.bytes)
    if (at % step > 0) continue
    const next = await new Bench().open()
    if (await next.restart(snapshot.reopened({}))) fromPages++
    next.broker.audit()
    const bindings = next.broker.topics.list({ pattern: undefined, target: undefined, after: 0 })
    expect(bindings.bindings.map(({ id }) => id)).toEqual([...known.keys()])
    const names = NAMES.filter((name) => isThere(next, name))
    const found = new Map<number, number[]>()
    for (const name of names)
      found.set(
        queueOf(next, name).id,
        (await peeked(next, name)).map(([, number]) => number),
      )
    const last = Math.max(-1, ...[...found.values()].flat())
    for (const [id, numbers] of found)
      expect(numbers).toEqual((expected.get(id) ?? []).filter((number) => number <= last))
    for (const topic of ['a', 'b', 'a.b', 'b.a.b']) {
      const headers = { x: '1' }
      const wanted = targetsOf(next, topic, headers)
      const bytes = batchOf([{ headers }], 1)
      const { topics } = next.broker
      next.broker.turn.begin()
      const reached = topics.targetsOf(`#?${topic}`, { bytes, at: 0, end: bytes.length }, 0xff)
      expect(reached.map(({ queue }) => queue.name).toSorted()).toEqual(wanted)
      const routes = topics.routes({ topic: topic as never, headers, after: 0 })
      expect([...new Set(routes.bindings.map(({ target }) => target))].toSorted()).toEqual(wanted)
    }
  }
  return fromPages
}

describe('bindings and publishes to topics', () => {
  it.each(seedsFrom(1, 3, 100))(
    'survive a crash at any entry, seed %i',
    async (seed) => {
      const made = await scene(seed, 120)
      expect(made.targets).toBeGreaterThan(100)
      expect(await starts(made, runs(9, 1))).toBeGreaterThan(1)
    },
    TIMEOUT_MS,
  )
})

describe('planted mistakes about topics', () => {
  it.each<[string, () => () => void]>([
    [
      '# matches exactly one level',
      () =>
        replaced(PatternTrie.prototype as PatternTrie<unknown>, (before) => ({
          add(pattern, value) {
            before.add.call(this, pattern.replaceAll('#', '*'), value)
          },
          remove(pattern, value) {
            before.remove.call(this, pattern.replaceAll('#', '*'), value)
          },
        })),
    ],
    [
      'after a crash, only the first target has the message',
      () => {
        let last = 0
        return replaced(Contents.prototype, (before) => ({
          referFact(refers, batch, position, ...rest) {
            const isFurther = this.appliedFrom !== Infinity && position === last
            last = position
            if (!isFurther) before.referFact.call(this, refers, batch, position, ...rest)
          },
        }))
      },
    ],
    [
      'the bindings of a deleted queue are kept',
      () => replaced(Definitions.prototype, () => ({ ownerRemoved() {} })),
    ],
    [
      'a definition is lost with its page',
      () =>
        replaced(Definitions.prototype, (before) => ({
          restorePage(id, bytes, ...rest) {
            before.restorePage.call(this, id, bytes, ...rest)
            this.undefine!(this.get!(id)!)
          },
        })),
    ],
  ])('found: %s', async (_what, plant) => {
    const remove = plant()
    try {
      await expect(scene(1, 120).then((made) => starts(made, 9))).rejects.toBeInstanceOf(Error)
    } finally {
      remove()
    }
  })
})
