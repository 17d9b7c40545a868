/** The harness finds lost and repeated messages. Measurements are not tested here. */
import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { atMsOf, Bodies, Seen } from './bodies.js'
import { DRIVERS } from './drivers/index.js'
import { TurnSender, UNANSWERED_MAX } from './drivers/kafka.js'
import type { Outcome } from './measure.js'
import { clientVersion, fetchedPath, isAtLeast, programOf } from './peers.js'
import { describe as described, isSound, markdownOf, svgOf, tableOf, type Results } from './report.js'
import { copiesOf, groupOf, groupsOf, parseScenarios, readScenarios, type Scenario } from './scenario.js'

const scenario = (fields: object = {}): Scenario =>
  parseScenarios(JSON.stringify([{ name: 'x', kind: 'publish', ...fields }]))[0]!

describe('scenarios', () => {
  const mistakes: readonly (readonly [given: unknown, said: RegExp])[] = [
    [{}, /array/],
    [[{ kind: 'publish' }], /Scenario 0 needs a unique name/],
    [
      [
        { name: 'a', kind: 'both' },
        { name: 'a', kind: 'both' },
      ],
      /"a" needs a unique name/,
    ],
    [[{ name: 'a', kind: 'push' }], /"a" has kind "push"; it is one of publish, consume/],
    [[{ name: 'a', kind: 'publish', producer: 2 }], /"a" has a field "producer" that is unknown/],
    [[{ name: 'a', kind: 'publish', bodyBytes: 8 }], /bodyBytes 8; it must be a number of at least 24/],
    [[{ name: 'a', kind: 'publish', inFlight: '9' }], /inFlight "9"/],
    [[{ name: 'a', kind: 'publish', body: 'json' }], /body "json"; it is one of bytes, object/],
    [[{ name: 'a', kind: 'latency' }], /needs a rate/],
    [[{ name: 'a', kind: 'both', fanOut: true }], /fanOut true; it is one of none, atomic, topic/],
    [[{ name: 'a', kind: 'both', from: 'group' }], /from "group"; it is one of queue, groups, readers/],
    [[{ name: 'a', kind: 'both', from: 'groups', fanOut: 'topic' }], /fanOut topic and from groups/],
    [[{ name: 'a', kind: 'consume', restart: 1 }], /restart 1; it is true or false/],
    [[{ name: 'a', kind: 'both', restart: true }], /only the kind consume/],
    [[{ name: 'a', kind: 'both', replies: 1 }], /replies 1; it is true or false/],
    [[{ name: 'a', kind: 'publish', replies: true }], /only the kind both/],
  ]
  it.each(mistakes)('%j is refused with the reason', (given, said) => {
    expect(() => parseScenarios(JSON.stringify(given))).toThrow(said)
  })

  it('say how often each message is consumed', () => {
    expect(copiesOf(scenario({ queues: 10, consumers: 5 }))).toBe(1)
    expect(copiesOf(scenario({ queues: 10, consumers: 5, fanOut: 'topic' }))).toBe(10)
    for (const from of ['groups', 'readers'])
      expect(copiesOf(scenario({ queues: 10, consumers: 5, from }))).toBe(5)
  })

  it('name the groups that consume', () => {
    const groups = scenario({ from: 'groups', consumers: 3 })
    expect(groupsOf(groups)).toEqual([0, 1, 2].map((index) => groupOf(groups, index)))
    const shared = scenario({ consumers: 3 })
    expect(groupsOf(shared)).toEqual([groupOf(shared, 2)])
    expect(groupsOf(scenario({ from: 'readers', consumers: 3 }))).toEqual([])
  })

  it('run on the floor only if it does what they require', () => {
    const floor = DRIVERS.find(({ name }) => name === 'floor')!
    expect(floor.can(scenario())).toBe(true)
    for (const fields of [
      { queues: 2 },
      { consumers: 2 },
      { body: 'object' },
      { fanOut: 'topic' },
      { from: 'readers' },
      { kind: 'consume', restart: true },
    ])
      expect(floor.can(scenario(fields))).toBe(false)
  })

  it.each(['scenarios', 'smoke'])('the scenarios of %s.json are valid', async (name) => {
    const scenarios = await readScenarios(fileURLToPath(new URL(`${name}.json`, import.meta.url)))
    expect(scenarios.length).toBeGreaterThan(4)
  })
})

describe('confirmed and consumed messages', () => {
  it.each(['bytes', 'object'])('are compared one by one, even across consumers: %s', (body) => {
    const first = new Bodies(0, scenario({ body }))
    const second = new Bodies(1, scenario({ body, bodyBytes: 300 }))
    const all = new Seen()
    const consumers = [new Seen(), new Seen()]
    for (let i = 0; i < 100_000; i++) {
      const of = i % 2 === 0 ? first.next(i) : second.next(i)
      if (i === 777) continue
      consumers[i % 3 === 0 ? 1 : 0]!.take(of)
      if (i === 900) consumers[1]!.take(of)
    }
    for (const { bits } of consumers) all.merge(bits)
    expect(all.distinct).toBe(99_999)
    expect(all.duplicates + consumers[0]!.duplicates + consumers[1]!.duplicates).toBe(1)
    expect(atMsOf(first.next(99_998))).toBe(99_998)
  })

  it('are compared copy by copy if each goes to several queues', () => {
    const bodies = new Bodies(1, scenario())
    const consumers = [new Seen(), new Seen()]
    for (let i = 0; i < 300; i++) {
      const body = bodies.next(0)
      // One copy of one message does not arrive, and one copy of another message arrives twice.
      for (let copy = 0; copy < 3; copy++) if (i !== 7 || copy !== 1) consumers[copy % 2]!.take(body, copy, 3)
      if (i === 9) consumers[1]!.take(body, 2, 3)
    }
    const all = new Seen()
    for (const { bits } of consumers) all.merge(bits)
    expect(all.distinct).toBe(899)
    expect(all.duplicates + consumers[0]!.duplicates + consumers[1]!.duplicates).toBe(1)
  })

  it('a damaged body does not count as a message', () => {
    const bodies = new Bodies(0, scenario())
    const seen = new Seen()
    bodies.next(0)
    const body = bodies.next(0) as Uint8Array
    body[7] = body[7]! ^ 1
    seen.take(body)
    expect([seen.damaged, seen.distinct]).toEqual([1, 0])
  })
})

describe('a report', () => {
  const outcome = (publish: number, fields: Partial<Outcome> = {}): Outcome => ({
    publish,
    consume: undefined,
    confirmLatency: { count: 9, p50: 1_500, p99: 9_000, p999: 9_500, max: 20_000 },
    endToEnd: undefined,
    confirmed: 1_000,
    lost: 0,
    duplicates: 0,
    damaged: 0,
    failed: 0,
    failure: undefined,
    brokerCpuUs: 1.234,
    brokerMib: 100,
    ...fields,
  })
  const results = (outcomes: readonly [driver: string, outcome: Outcome][]): Results => ({
    atMs: 1.8e12,
    commit: 'abc',
    machine: { cpu: 'A <fast> one', cores: 2, memoryGib: 8, kernel: '6', node: '20' },
    rounds: 3,
    peers: [{ name: 'floor', version: '1', settings: 'bare' }],
    missing: ['nats'],
    scenarios: [scenario()],
    runs: outcomes.map(([driver, outcome], round) => ({ scenario: 'x', driver, round, outcome })),
  })

  it('gives medians, shares of the floor, and the failures', () => {
    const found = results([
      ['floor', outcome(1_000_000)],
      ['sluice', outcome(500_000)],
      ['sluice', outcome(610_000)],
      ['sluice', outcome(600_000, { duplicates: 3, failed: 2 })],
    ])
    expect(tableOf(found, found.scenarios[0]!)).toEqual([
      ['', 'publish/s', 'p50 ms', 'p99 ms', 'max ms', 'broker µs/msg', 'broker MiB', 'of the floor', ''],
      ['floor', '1,000,000', '1.50', '9.00', '20.0', '1.23', '100', '100 %', ''],
      ['sluice', '600,000', '1.50', '9.00', '20.0', '1.23', '100', '60 %', '3 twice, 2 failed'],
    ])
    expect(isSound(found)).toBe(true)
    expect(markdownOf(found)).toContain('Not installed and not measured: nats.')
    expect(svgOf(found)).toContain('class="ours"')
  })

  it('describes what a scenario adds to the usual', () => {
    expect(described(scenario({ kind: 'consume', from: 'groups', consumers: 5, restart: true }))).toBe(
      '5 groups, 128 bytes, 1,000 in flight, the broker restarted before',
    )
    expect(described(scenario({ kind: 'both', fanOut: 'topic' }))).toBe(
      '1 producer, 1 consumer, 1 queue, each message to all of them by a topic, 128 bytes, 1,000 in flight',
    )
  })

  it('is not sound if a confirmed message never arrived', () => {
    const found = results([['sluice', outcome(1, { lost: 1 })]])
    expect(isSound(found)).toBe(false)
    expect(tableOf(found, found.scenarios[0]!)[1]!.at(-1)).toBe('1 confirmed and not consumed')
  })
})

describe('peers', () => {
  afterEach(() => vi.unstubAllEnvs())

  it('are found in the directory LOAD_PEERS, and programs otherwise on PATH', () => {
    vi.stubEnv('LOAD_PEERS', '')
    expect(fetchedPath('run.ts')).toBeUndefined()
    expect(programOf('nats-server')).toBe('nats-server')
    const directory = fileURLToPath(new URL('.', import.meta.url))
    vi.stubEnv('LOAD_PEERS', directory)
    expect(fetchedPath('run.ts')).toBe(`${directory}run.ts`)
    expect(fetchedPath('kafka')).toBeUndefined()
    expect(programOf('nats-server')).toBe('nats-server')
    expect(clientVersion('kafkajs')).toBeUndefined()
  })

  it('say what must be installed, unless the project contains them', () => {
    expect(DRIVERS.filter(({ needs }) => needs === undefined).map(({ name }) => name)).toEqual([
      'floor',
      'sluice',
    ])
    expect(new Set(DRIVERS.map(({ name }) => name)).size).toBe(DRIVERS.length)
  })

  it.each([
    ['24.6.0', '24.6.0', true],
    ['24.21.0', '24.6.0', true],
    ['25.0.0', '24.6.0', true],
    ['24.5.9', '24.6.0', false],
    ['2.9.10', '2.10', false],
    ['2.10', '2.10.0', true],
  ])('%s is at least %s: %s', (version, least, is) => {
    expect(isAtLeast(version, least)).toBe(is)
  })
})

describe('a sender that coalesces', () => {
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

  it('sends what one turn publishes as one request, from copies of the bodies', async () => {
    const sent: string[][] = []
    const sender = new TurnSender((records) => {
      sent.push(records.map(({ topic, value }) => `${topic} ${value.toString()}`))
      return Promise.resolve()
    })
    const body = bytes('one')
    const first = [sender.publish('a', body), sender.publish('b', bytes('two'))]
    body.fill(0)
    await Promise.all(first)
    await sender.publish('a', bytes('three'))
    expect(sent).toEqual([['a one', 'b two'], ['a three']])
  })

  it('keeps few requests unanswered, and sends the rest with the next', async () => {
    const sent: number[] = []
    const answers: (() => void)[] = []
    const sender = new TurnSender((records) => {
      sent.push(records.length)
      return new Promise<void>((resolve) => answers.push(resolve))
    })
    const published: Promise<void>[] = []
    for (let i = 0; i < UNANSWERED_MAX + 3; i++) {
      published.push(sender.publish('a', bytes('x')))
      await turn()
    }
    const first = Array<number>(UNANSWERED_MAX).fill(1)
    expect(sent).toEqual(first)
    answers[0]!()
    await published[0]
    expect(sent).toEqual([...first, 3])
    for (const answer of answers) answer()
    await Promise.all(published)
  })

  it('answers each publish with the answer to its own request', async () => {
    const answers: ((error?: Error) => void)[] = []
    const sender = new TurnSender(
      () =>
        new Promise<void>((resolve, reject) => {
          answers.push((error) => (error === undefined ? resolve() : reject(error)))
        }),
    )
    const first = [sender.publish('a', bytes('1')), sender.publish('a', bytes('2'))]
    await turn()
    const second = sender.publish('a', bytes('3'))
    await turn()
    expect(answers.length).toBe(2)
    answers[1]!()
    await second
    answers[0]!(new Error('refused'))
    for (const each of await Promise.allSettled(first)) expect(each.status).toBe('rejected')
  })
})
