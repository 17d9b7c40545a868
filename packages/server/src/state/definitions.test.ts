/** Definitions: in the log and its pages, after crashes, and their limits. */
import { queueName } from '@sluice/protocol'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { DEFINITIONS_BYTES_MAX } from '../broker/registry.js'
import { DEFINITION_BYTES_MAX } from '../log/entry-limits.js'
import { Bench, type BenchOptions } from '../testing/bench.js'
import { applyDefinitions, type PlainDefinitions } from '../testing/definitions.js'
import { queueOf } from '../testing/sharing.js'
import { NO_OWNER, type Defined } from './definitions.js'
import { NODE_ENTRIES_MAX, PageTree } from './page-tree.js'
import { Chance } from '../../../../test/simulation/chance.js'
import { TIMEOUT_MS, seedsFrom } from '../../../../test/amount.js'

const refused = (code: string): Error => expect.objectContaining({ code }) as Error
/** A kind without a meaning: the broker keeps its definitions, and does not read their texts. */
const KIND = 250 as Defined['kind']
const schedule = (text: string, number = 0): Defined => ({
  kind: KIND,
  owner: NO_OWNER,
  text,
  number,
})

function recovered(bench: Bench): PlainDefinitions {
  return new Map(
    [...bench.broker.registry].map(({ id, kind, owner, text, number }) => [
      id,
      { kind, owner, text, number },
    ]),
  )
}

describe('after a crash at any entry', () => {
  beforeAll(() => void (PageTree.entriesMax = 8))
  afterAll(() => void (PageTree.entriesMax = NODE_ENTRIES_MAX))

  const NAMES = ['a', 'b', 'c', 'd'].map(queueName)

  async function change(bench: Bench, chance: Chance): Promise<void> {
    const { registry, catalog } = bench.broker
    const all = [...registry]
    const name = chance.pick(NAMES)
    bench.broker.turn.begin()
    switch (chance.int(0, 7)) {
      case 0:
      case 1:
      case 2: {
        const owner = chance.int(0, 2) === 0 ? NO_OWNER : queueOf(bench, name).id
        const text = `é${chance.int(0, 999_999)}`.repeat(1 + chance.int(0, 19))
        registry.define({ kind: KIND, owner, text, number: chance.int(0, 999_999_999) })
        return
      }
      case 3:
      case 4:
        if (all.length > 0)
          registry.redefine(chance.pick(all), `${chance.int(0, 999_999)}`, chance.int(0, 999_999_999))
        return
      case 5:
        if (all.length > 20) registry.undefine(chance.pick(all))
        return
      case 6:
        if (chance.int(0, 3) > 0) return
        catalog.delete(name)
        bench.ensure({}, name)
        return
      default:
        await bench.fill(2_000 + chance.int(0, 5_999))
    }
  }

  it.each(seedsFrom(1, 3, 100))(
    'are what the entries say, seed %i',
    async (seed) => {
      const chance = new Chance(seed)
      const options: BenchOptions = { segmentBytes: 32 << 10, checkpointBytes: 4 << 10, keepsSnapshots: true }
      const bench = await new Bench(options).open()
      for (const name of NAMES) bench.ensure({}, name)
      for (let step = 0; step < 120; step++) {
        await change(bench, chance)
        if (chance.int(0, 1) === 0) await bench.pass(chance.int(0, 59))
        bench.broker.auditUse()
      }
      await bench.settle()
      bench.broker.audit()
      const { snapshots } = bench
      const known: PlainDefinitions = new Map()
      let highest = 0
      let fromPages = 0
      for (const snapshot of snapshots) {
        const last = snapshot.entries.at(-1)
        if (last !== undefined) applyDefinitions(known, last.bytes)
        for (const id of known.keys()) highest = Math.max(highest, id)
        const next = await new Bench().open()
        if (await next.restart(snapshot.reopened({}))) fromPages++
        expect(recovered(next)).toEqual(known)
        next.broker.audit()
        expect(next.broker.registry.define(schedule('new')).id).toBeGreaterThan(highest)
      }
      expect(fromPages).toBeGreaterThan(snapshots.length / 4)
      expect(highest).toBeGreaterThan(20)
      expect(bench.log.entries[0]!.lsn).toBeGreaterThan(1)
    },
    TIMEOUT_MS,
  )
})

it('move to new segments when the old ones are freed, and nothing is written at rest', async () => {
  const bench = await new Bench({ segmentBytes: 32 << 10, checkpointBytes: 4 << 10 }).open()
  bench.broker.turn.begin()
  for (let at = 0; at < 50; at++) bench.broker.registry.define(schedule(`s${at}`, at))
  await bench.settle()
  const before = recovered(bench)
  const first = bench.log.usage().firstPosition
  await bench.fill(200 << 10)
  expect(bench.log.usage().firstPosition).toBeGreaterThan(first + (64 << 10))
  await bench.pass(5_000)
  const written = bench.broker.usage().writtenBytes
  for (let at = 0; at < 20; at++) await bench.pass(60_000)
  expect(bench.broker.usage().writtenBytes).toBe(written)
  expect(await bench.crash()).toBe(true)
  expect(recovered(bench)).toEqual(before)
  bench.broker.audit()
})

describe('limits', () => {
  it('bound the number of definitions', async () => {
    const bench = await new Bench({ definitionsMax: 3 }).open()
    const { registry } = bench.broker
    const all = ['a', 'b', 'c'].map((text) => registry.define(schedule(text)))
    expect(() => registry.define(schedule('d'))).toThrow(refused('TOO_MANY_DEFINITIONS'))
    registry.redefine(all[0]!, 'other', 1)
    registry.undefine(all[1]!)
    expect(registry.define(schedule('d')).id).toBe(4)
  })

  it('bound one text, and the number of pages', async () => {
    const bench = await new Bench({ pagesMax: 2, segmentBytes: 1 << 20 }).open()
    const { registry } = bench.broker
    const text = 'x'.repeat(DEFINITION_BYTES_MAX)
    registry.define(schedule(text))
    expect(() => registry.define(schedule(`${text}x`))).toThrow(refused('DEFINITION_TOO_LARGE'))
    registry.define(schedule('b'))
    expect(() => registry.define(schedule('c'))).toThrow(refused('TOO_MANY_DEFINITIONS'))
    await bench.settle()
    await bench.crash()
    expect(recovered(bench).get(1)!.text).toBe(text)
  })

  it('bound one text to an eighth of an entry', async () => {
    const bench = await new Bench({ entryBytesMax: 64 << 10 }).open()
    const { registry } = bench.broker
    registry.define(schedule('x'.repeat(8 << 10)))
    expect(() => registry.define(schedule('x'.repeat((8 << 10) + 1)))).toThrow(
      refused('DEFINITION_TOO_LARGE'),
    )
  })

  it('bound all texts together', async () => {
    const bench = await new Bench({ segmentBytes: 8 << 20 }).open()
    const { registry } = bench.broker
    const text = 'x'.repeat(DEFINITION_BYTES_MAX)
    for (let bytes = 0; bytes < DEFINITIONS_BYTES_MAX; bytes += text.length) {
      bench.broker.turn.begin()
      registry.define(schedule(text))
      await bench.settle()
    }
    expect(() => registry.define(schedule('x'))).toThrow(refused('TOO_MANY_DEFINITIONS'))
    registry.undefine([...registry][0]!)
    registry.define(schedule('x'))
    bench.broker.audit()
  })
})
