/**
 * The commands of operators on the built command line: queue options, peek, cancel, dead letters, replays; also with
 * wrong values, missing queues, and pipes.
 */
import { DeadLetter } from '@sluice/client'
import { QUEUE_COUNTERS, QUEUE_OPTIONS } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { broker, ended, expectFailure, run, sluice, start, until } from './cli.js'

/** Creates the queue with dead messages, whose bodies are 0, 1, 2 and so on; those with even bodies have the key `even`. */
async function dying(name: string, count: number): Promise<void> {
  await sluice.queues.ensure(name)
  await sluice.publishBatch(
    name,
    Array.from({ length: count }, (_, index) => ({ body: index, key: index % 2 === 0 ? 'even' : 'odd' })),
  )
  await die(name, count)
}

async function die(name: string, count: number): Promise<void> {
  const worker = sluice.consume(name, { concurrency: 10 }, () => {
    throw new DeadLetter('no such customer')
  })
  await until(async () => (await sluice.queues.get(name)).dead === count)
  await worker.close()
}

function documents(stdout: string): Record<string, unknown>[] {
  return stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)
}

describe.concurrent('wrong values', () => {
  const TIME = '2030-05-01T10:00Z'
  const mistakes: readonly (readonly [args: string, what: RegExp, hint: RegExp])[] = [
    ['queue ensure q --processing-timeout 99ms', /--processing-timeout is "99ms".* 100ms/, /longer/],
    ['queue ensure q --ttl 30', /--ttl is "30"; it must be a duration/, /with a unit/],
    ['queue ensure q --max-bytes 10x', /--max-bytes is "10x".* size/, /'10mb'/],
    ['queue ensure q --unique pendin', /--unique is "pendin"; .* window, pending/, /Did you mean pending/],
    ['queue ensure q --dead-leter x', /Unknown option --dead-leter/, /--dead-letter/],
    ['consume q --no-ak', /Unknown option --no-ak\./, /Did you mean --no-ack\?/],
    ['queue ensure q --max-deliveries 0', /from 1 to 65535, or unlimited/, /bounds/],
    ['queue ensure q --no-max-deliveries', /Unknown option --no-max-deliveries/, /--max-deliveries/],
    [
      'queue ensure q --retry-initial 2s --retry-max 1s',
      /--retry-initial is 2s, above --retry-max of 1s/,
      /\S/,
    ],
    ['queue edit q', /No option to change/, /--help/],
    ['queue list --timeout 0', /--timeout is "0"; it must be at least 1ms/, /longer/],
    [`publish q b --delay 1s --at ${TIME}`, /--delay and --at are mutually exclusive/, /one of them/],
    ['publish q --id a', /same --id/, /--file -/],
    ['peek q --state redy', /--state is "redy"/, /Did you mean ready/],
    ['cancel q', /Neither --offset nor --id/, /--offset and --id/],
    ['reschedule q --offset 1', /Neither --delay nor --at/, /--delay and --at/],
    ['dead', /needs a command/, /list, get, redrive, delete/],
    ['dead redrve q', /Unknown command "dead redrve"/, /`sluice dead redrive`/],
    ['dead redrive q --to q', /--to names the queue q itself/, /Omit --to/],
    ['dead list q --reason max-deliveries', /--reason is/, /Did you mean maxDeliveries/],
    ['replay q --from yesterday', /--from is "yesterday"/, /2026-05-01T10:00Z/],
    ['replay q --reason rejected', /Unknown option --reason/, /replay --help/],
  ]
  test.each(mistakes)('%s is a usage error', async (args, what, hint) => {
    expectFailure(await run(args.split(' ')), 2, what, hint)
  })

  test.each([
    'queue edit missing --ttl 1s',
    'peek missing',
    'explain missing',
    'dead redrive missing',
    'replay missing',
    'queue ensure new --dead-letter missing',
  ])('%s names the missing queue', async (args) => {
    expectFailure(await run(args.split(' ')), 4, /"missing"/, /queue list/)
  })
})

describe.concurrent('queues', () => {
  test('have a flag for each option, and show options that differ from the default', async () => {
    await sluice.queues.ensure('failed')
    const values: Record<keyof typeof QUEUE_OPTIONS, readonly string[]> = {
      maxDeliveries: ['--max-deliveries', '5'],
      retryInitialMs: ['--retry-initial', '2s'],
      retryMaxMs: ['--retry-max', '90s'],
      processingTimeoutMs: ['--processing-timeout', '5m'],
      ttlMs: ['--ttl', '2d'],
      keyConcurrency: ['--key-concurrency', '2'],
      onFail: ['--on-fail', 'skip'],
      unique: ['--unique', 'window'],
      dedupWindowMs: ['--dedup-window', '1h'],
      dedupMaxIds: ['--dedup-max-ids', '1000'],
      maxMessages: ['--max-messages', '100000'],
      maxBytes: ['--max-bytes', '10mb'],
      overflow: ['--overflow', 'drop-oldest'],
      deadLetter: ['--dead-letter', 'failed'],
      single: ['--single'],
      retainAgeMs: ['--retain-age', '7d'],
      retainBytes: ['--retain-bytes', '1GiB'],
      expiresMs: ['--expires', '30d'],
      rateMessages: ['--rate', '100/1s'],
      ratePerMs: [],
      keyRateMessages: ['--key-rate', '5/1m'],
      keyRatePerMs: [],
    }
    expect(Object.keys(values)).toEqual(Object.keys(QUEUE_OPTIONS))
    const made = await run(['queue', 'ensure', 'options', ...Object.values(values).flat()])
    expect(made).toMatchObject({ code: 0, stderr: 'Created the queue options.\n' })
    expect((await sluice.queues.get('options')).options).toEqual({
      maxDeliveries: 5,
      retry: { initial: 2_000, max: 90_000 },
      processingTimeout: 300_000,
      ttl: 172_800_000,
      keyConcurrency: 2,
      onFail: 'skip',
      unique: 'window',
      dedupWindow: 3_600_000,
      dedupMaxIds: 1_000,
      maxMessages: 100_000,
      maxBytes: 10_000_000,
      overflow: 'drop-oldest',
      deadLetter: 'failed',
      single: true,
      retain: { age: 604_800_000, bytes: 1024 ** 3 },
      expires: 2_592_000_000,
      rate: { messages: 100, per: 1_000 },
      keyRate: { messages: 5, per: 60_000 },
    })
    const shown = await run(['queue', 'get', 'options'])
    for (const counter of Object.keys(QUEUE_COUNTERS)) expect(shown.stdout).toMatch(`\n${counter} `)
    for (const line of [
      'retry max +90s',
      'max bytes +10MB',
      'dead letter +failed',
      'retain bytes +1GiB',
      'key rate +5/1m',
    ])
      expect(shown.stdout).toMatch(new RegExp(`^${line}$`, 'm'))
    expect(shown.stdout).not.toMatch(/^unique/m)

    const taken = ['--no-dead-letter', '--no-ttl', '--no-single', '--no-rate', '--on-fail', 'block']
    expect(await run(['queue', 'edit', 'options', ...taken])).toEqual({
      code: 0,
      stdout: '',
      stderr:
        'Changed the queue options: ttl 2d → none, on-fail skip → block, dead-letter failed → none, single yes → no, rate 100/1s → none.\n',
    })
    const same = await run(['queue', 'edit', 'options', ...taken, '--json'])
    expect(JSON.parse(same.stdout)).toMatchObject({
      changed: false,
      queue: { options: { ttl: 0, onFail: 'block', deadLetter: null, single: false, maxDeliveries: 5 } },
    })
    expectFailure(
      await run(['queue', 'edit', 'options', '--unique', 'pending']),
      2,
      /--unique/,
      /another queue/,
    )
    expect((await run(['queue', 'get', 'failed'])).stdout).toContain('all at their defaults')
  })

  test('are explained in sentences, with what to do', async () => {
    await sluice.queues.ensure('explained')
    await sluice.publish('explained', 'x', { delay: '1h' })
    const whole = await run(['explain', 'explained'])
    expect(whole).toMatchObject({ code: 0, stderr: '' })
    expect(whole.stdout).toMatch(
      /^No message is ready; the next scheduled one waits until .*\.\nThe queue has no consumer\.\n {2}Start one/,
    )
    const one = await run(['explain', 'explained', '0', '--json'])
    expect(JSON.parse(one.stdout)).toMatchObject({
      deliverable: false,
      reasons: [{ code: 'scheduled' }, { code: 'noConsumer' }],
    })
    expect((await run(['explain', 'explained', '7'])).stdout).toContain('No message has this offset yet')
    expectFailure(await run(['explain', 'explained', 'x']), 2, /The offset is "x"/, /number/)
  })

  test('are paused and resumed', async () => {
    await sluice.queues.ensure('pausing')
    expect((await run(['queue', 'pause', 'pausing'])).stderr).toBe('Paused the queue pausing.\n')
    expect(JSON.parse((await run(['queue', 'pause', 'pausing', '--json'])).stdout)).toEqual({
      name: 'pausing',
      changed: false,
    })
    expect((await run(['queue', 'list'])).stdout).toMatch(/^pausing .* yes$/m)
    expect((await run(['queue', 'resume', 'pausing'])).stderr).toBe('Resumed the queue pausing.\n')
    expect((await run(['queue', 'resume', 'pausing'])).stderr).toBe('The queue pausing is not paused.\n')
  })

  test('list their consumers, and close them', async () => {
    await sluice.queues.ensure('consumed')
    expect(await run(['queue', 'consumers', 'consumed'])).toMatchObject({
      stdout: '',
      stderr: 'The queue consumed has no consumers.\n',
    })
    await sluice.publish('consumed', 'held')
    const consuming = run(['consume', 'consumed', '--no-ack'])
    await until(async () => (await sluice.queues.get('consumed')).leased === 1)
    expect((await run(['queue', 'consumers', 'consumed'])).stdout).toMatch(
      /^ +ID +CLIENT .*\n *\d+ +sluice consume +127\.0\.0\.1:\d+ +yes .* 1\n$/,
    )
    const [consumer] = JSON.parse((await run(['queue', 'consumers', 'consumed', '--json'])).stdout) as [
      { id: number },
    ]
    const closed = await run(['queue', 'close-consumer', 'consumed', String(consumer.id)])
    expect(closed.stderr).toBe(
      `Closed the consumer ${consumer.id} of the queue consumed; 1 message returned to the queue.\n`,
    )
    const { code, stdout, stderr } = await consuming
    expect(stdout).toBe('held\n')
    expect(stderr).toMatch(/^error: An operator closed .*\n hint: .*\n$/)
    expect(code).toBe(1)
    expectFailure(
      await run(['queue', 'close-consumer', 'consumed', String(consumer.id)]),
      4,
      /no consumer/,
      /queue consumers/,
    )
    expectFailure(
      await run(['queue', 'close-consumer', 'consumed', '4294967295']),
      4,
      /no consumer/,
      /queue consumers/,
    )
    expectFailure(
      await run(['queue', 'close-consumer', 'consumed', '4294967296']),
      2,
      /from .* to 4294967295/,
      /within these bounds/,
    )
  })
})

describe.concurrent('messages', () => {
  test('are published with all options, and inspected', async () => {
    await sluice.queues.ensure('peeked')
    const publish = ['publish', 'peeked']
    const first = [
      'first\nline',
      '--id',
      'a',
      '--key',
      'k',
      '--priority',
      '7',
      '--header',
      'x=y',
      '--ttl',
      '1h',
    ]
    expect((await run([...publish, ...first])).stdout).toBe('offset 0\n')
    expect((await run([...publish, 'again', '--id', 'a'])).stdout).toBe('offset 0 (duplicate)\n')
    await run([...publish, '{"n":[1,2]}', '--body-type', 'json', '--delay', '2h'])
    const at = '2100-05-01T10:00:00.000Z'
    await run([...publish, '--file', '-', '--at', at], { input: 'x'.repeat(500) })
    await sluice.publish('peeked', Uint8Array.of(0, 255))

    const table = await run(['peek', 'peeked'])
    expect(table.stderr).toBe('')
    const lines = table.stdout.split('\n')
    expect(lines).toHaveLength(6)
    expect(lines[0]).toMatch(/^OFFSET {2}STATE +WHEN +ATTEMPTS {2}PRIORITY {2}KEY {2}ID {2}BODY$/)
    expect(lines[1]).toMatch(/^ +0 {2}ready +\d+m?s ago +0 +7 {2}k +a +first\\nline$/)
    expect(lines[2]).toMatch(/scheduled {2}in (?:2h|1h59m) .* \{"n":\[1,2\]\}$/)
    expect(lines[3]).toMatch(/ x{79}…$/)
    expect(lines[4]).toMatch(/\(2 bytes\) 00ff$/)

    const { stdout } = await run(['peek', 'peeked', '--json'])
    expect(documents(stdout)).toMatchObject([
      {
        queue: 'peeked',
        offset: 0,
        state: 'ready',
        id: 'a',
        key: 'k',
        priority: 7,
        attempts: 0,
        headers: { x: 'y' },
        expiresAt: expect.any(String) as string,
        bodyType: 'text',
        body: 'first\nline',
      },
      { offset: 2, state: 'scheduled', bodyType: 'data', body: { n: [1, 2] } },
      { offset: 3, dueAt: at, body: 'x'.repeat(500) },
      { offset: 4, bodyType: 'bytes', body: 'AP8=' },
    ])
    const some = await run([
      'peek',
      'peeked',
      '--limit',
      '1',
      '--from',
      '1',
      '--state',
      'scheduled',
      '--json',
    ])
    expect(documents(some.stdout)).toMatchObject([{ offset: 2 }])
    expect(some.stderr).toMatch(/--from 3,/)
    const filtered = await run([
      'peek',
      'peeked',
      '--header',
      'x=y',
      '--key',
      'k',
      '--younger-than',
      '1h',
      '--json',
    ])
    expect(documents(filtered.stdout)).toHaveLength(1)
    expect(await run(['peek', 'peeked', '--key', 'none'])).toEqual({
      code: 0,
      stdout: '',
      stderr: 'No message of the queue peeked matches.\n',
    })
  })

  test('are cancelled and rescheduled', async () => {
    await sluice.queues.ensure('waiting')
    for (const id of ['a', 'b', 'c']) await sluice.publish('waiting', id, { id, delay: '1h' })
    expect(await run(['cancel', 'waiting', '--id', 'a'])).toEqual({
      code: 0,
      stdout: '',
      stderr: 'Cancelled message 0 of the queue waiting.\n',
    })
    expect(JSON.parse((await run(['cancel', 'waiting', '--offset', '1', '--json'])).stdout)).toEqual({
      queue: 'waiting',
      offset: 1,
    })
    expectFailure(await run(['cancel', 'waiting', '--offset', '1']), 4, /no message 1/, /sluice peek/)

    const at = '2100-01-01T00:00:00.000Z'
    const moved = await run(['reschedule', 'waiting', '--id', 'c', '--at', at, '--json'])
    expect(JSON.parse(moved.stdout)).toEqual({ queue: 'waiting', offset: 2, due: at })
    expectFailure(
      await run(['reschedule', 'waiting', '--id', 'c', '--at', '1000']),
      2,
      /`at` is 1970-01-01T00:00:01.000Z/,
    )
    expect((await run(['reschedule', 'waiting', '--offset', '2', '--delay', '0'])).stderr).toMatch(
      /^Message 2 of the queue waiting is due at .*, now\.\n$/,
    )
    const [message] = await sluice.pull('waiting')
    expectFailure(await run(['cancel', 'waiting', '--offset', '2']), 1, /held by a consumer/, /Wait/)
    await message!.ack()
  })
})

describe.concurrent('dead letters', () => {
  test('are listed and shown', async () => {
    await dying('dead/shown', 5)
    const { stdout, stderr } = await run(['dead', 'list', 'dead/shown', '--limit', '2'])
    const lines = stdout.split('\n')
    expect(lines[0]).toMatch(/^OFFSET {2}REASON +WHEN +ATTEMPTS {2}KEY +ERROR +BODY$/)
    expect(lines[1]).toMatch(/^ +0 {2}rejected .* 1 {2}even {2}no such customer {2}0$/)
    expect(lines).toHaveLength(4)
    expect(stderr).toMatch(/--from 2,/)
    const odd = await run(['dead', 'ls', 'dead/shown', '--key', 'odd', '--error', 'such', '--json'])
    expect(documents(odd.stdout)).toMatchObject([
      { offset: 1, state: 'dead', reason: 'rejected', error: 'no such customer', attempts: 1, body: 1 },
      { offset: 3 },
    ])
    const one = await run(['dead', 'get', 'dead/shown', '3'])
    expect(one.stdout).toMatch(/^offset +3\nstate +dead\nreason +rejected\n[^]*\nbody +data\n\n3\n$/)
    expect(documents((await run(['dead', 'info', 'dead/shown', '3', '--json'])).stdout)).toMatchObject([
      { offset: 3, body: 3 },
    ])
    expectFailure(
      await run(['dead', 'get', 'dead/shown', '9']),
      4,
      /no dead message at offset 9/,
      /dead list/,
    )
  })

  test('are redriven to their own queue or to another one', async () => {
    await dying('dead/back', 6)
    await sluice.queues.ensure('dead/elsewhere')
    const redrive = ['dead', 'redrive', 'dead/back']
    expect(await run([...redrive, '--key', 'even', '--dry-run'])).toEqual({
      code: 0,
      stdout: '',
      stderr: 'This would return 3 dead messages to the queue dead/back.\n',
    })
    expect((await sluice.queues.get('dead/back')).dead).toBe(6)
    const some = await run([...redrive, '--offset', '0', '--offset', '2', '--offset', '99'])
    expect(some.stderr).toMatch(
      /^Returned 2 dead messages to the queue dead\/back.\nerror: .*no dead message at offset 99.\n hint: .*dead list/,
    )
    expect(some.code).toBe(4)
    const none = await run([...redrive, '--offset', '0', '--offset', '2', '--dry-run'])
    expectFailure(none, 4, /no dead message at offsets 0, 2\./)
    expect((await run([...redrive, '--to', 'dead/elsewhere', '--key', 'odd', '--limit', '2'])).stderr).toBe(
      'Moved 2 dead messages of the queue dead/back to the queue dead/elsewhere.\n',
    )
    const rest = await run([...redrive, '--json'])
    expect(rest.stderr).toBe('')
    expect(JSON.parse(rest.stdout)).toMatchObject({
      queue: 'dead/back',
      matched: 2,
      redriven: 2,
      guarded: 0,
      barred: 0,
    })
    expect((await run(redrive)).stderr).toBe('The queue dead/back has no dead messages.\n')
    expect(await sluice.queues.get('dead/back')).toMatchObject({ ready: 4, dead: 0, redriven: 6 })
    expect((await sluice.queues.get('dead/elsewhere')).ready).toBe(2)
  })

  test('that were redriven too often need --force', async () => {
    await dying('dead/often', 1)
    for (let i = 0; i < 10; i++) {
      await sluice.dead.redrive('dead/often')
      await die('dead/often', 1)
    }
    expect((await run(['dead', 'redrive', 'dead/often'])).stderr).toBe(
      'Returned 0 dead messages to the queue dead/often.\n' +
        'Of the matching messages, 1 was already redriven 10 times and stays dead; --force redrives such messages too.\n',
    )
    expect(
      JSON.parse((await run(['dead', 'redrive', 'dead/often', '--json', '--force'])).stdout),
    ).toMatchObject({
      matched: 1,
      redriven: 1,
      guarded: 0,
    })
  })

  test('are deleted', async () => {
    await dying('dead/gone', 4)
    const remove = ['dead', 'delete', 'dead/gone']
    expect((await run([...remove, '--dry-run'])).stderr).toBe(
      'This would delete 4 dead messages of the queue dead/gone.\n',
    )
    expect((await run([...remove, '--key', 'odd', '--yes'])).stderr).toBe(
      'Deleted 2 dead messages of the queue dead/gone.\n',
    )
    expect(JSON.parse((await run(['dead', 'rm', 'dead/gone', '-y', '--json'])).stdout)).toMatchObject({
      queue: 'dead/gone',
      matched: 2,
      deleted: 2,
    })
    expect(await sluice.queues.get('dead/gone')).toMatchObject({ dead: 0, discarded: 4 })
  })

  test('need no confirmation to be deleted when there are none', async () => {
    await sluice.queues.ensure('dead/none')
    const remove = ['dead', 'delete', 'dead/none']
    const [none, named] = await Promise.all([run(remove), run([...remove, '--offset', '1'])])
    expect(none).toEqual({ code: 0, stdout: '', stderr: 'The queue dead/none has no dead messages.\n' })
    expectFailure(named, 4, /no dead message at offset 1\./)
    await dying('dead/none', 1)
    expectFailure(await run(remove), 2, /requires a terminal/, /--yes/)
  })

  test('are redriven no faster than requested, until Ctrl-C', async () => {
    await dying('dead/paced', 40)
    const child = start(['dead', 'redrive', 'dead/paced', '--rate', '10'], { SLUICE_URL: broker.url })
    const result = ended(child)
    await until(async () => (await sluice.queues.get('dead/paced')).redriven > 0)
    child.kill('SIGINT')
    const { code, stdout, stderr } = await result
    const { redriven } = await sluice.queues.get('dead/paced')
    expect({ code, stdout, stderr }).toEqual({
      code: 130,
      stdout: '',
      stderr: `Interrupted: ${redriven} message${redriven === 1 ? '' : 's'} redriven.\n`,
    })
    expect(redriven).toBeLessThan(40)
  })
})

describe.concurrent('acknowledged messages', () => {
  test('are published again until Ctrl-C, and from the same place by the next command, each message once', async () => {
    await sluice.queues.ensure('paced', { retain: { age: '1d' } })
    await sluice.queues.ensure('paced/copies')
    await sluice.publishBatch(
      'paced',
      Array.from({ length: 40 }, (_, i) => ({ body: i })),
    )
    for (const message of await sluice.pull('paced', { max: 40 })) await message.ack()
    const replay = ['replay', 'paced', '--to', 'paced/copies']
    const child = start([...replay, '--rate', '10', '--json'], { SLUICE_URL: broker.url })
    const result = ended(child)
    await until(async () => (await sluice.queues.get('paced/copies')).published > 0)
    child.kill('SIGINT')
    const { code, stdout, stderr } = await result
    const { published } = await sluice.queues.get('paced/copies')
    expect(code).toBe(130)
    expect(stderr).toMatch(
      /^Interrupted: \d+ messages? published to paced\/copies since the start\.\nhint: To continue where this command ended, run it again with --cursor [\d:]+\n$/,
    )
    const cursor = /--cursor ([\d:]+)/.exec(stderr)![1]!
    expect(JSON.parse(stdout)).toMatchObject({ interrupted: true, cursor, replayed: published })
    expect((await run([...replay, '--cursor', cursor])).stderr).toBe(
      `Published ${40 - published} messages of the queue paced again, to the queue paced/copies.\n`,
    )
    const copies = await sluice.pull('paced/copies', { max: 100 })
    expect(copies.map(({ body }) => body)).toEqual(Array.from({ length: 40 }, (_, i) => i))
    expect((await run([...replay, '--cursor', 'x'])).stderr).toMatch(/^error: .*cursor.*\n hint: .*\n$/)
  })

  test('are published again', async () => {
    await sluice.queues.ensure('done', { retain: { age: '1d' } })
    await sluice.queues.ensure('copies')
    for (const key of ['a', 'b', 'c']) await sluice.publish('done', key, { key })
    for (const message of await sluice.pull('done', { max: 3 })) await message.ack()
    const replay = ['replay', 'done', '--to', 'copies']
    expect(await run([...replay, '--dry-run'])).toEqual({
      code: 0,
      stdout: '',
      stderr: 'This would publish 3 messages of the queue done again, to the queue copies.\n',
    })
    expect((await run([...replay, '--until', '2020-01-01', '--dry-run'])).stderr).toMatch(
      /no acknowledged message/,
    )
    expect(JSON.parse((await run([...replay, '--from', '1', '--key', 'c', '--json'])).stdout)).toEqual({
      queue: 'done',
      to: 'copies',
      dryRun: false,
      matched: 1,
      replayed: 1,
    })
    expect((await run([...replay, '--limit', '2', '--rate', '100'])).stderr).toBe(
      'Published 2 messages of the queue done again, to the queue copies.\n',
    )
    expect((await run(['replay', 'done', '--from', '2020-01-01', '--header', 'x=y'])).stderr).toMatch(
      /no acknowledged message/,
    )
    expect((await run(['peek', 'copies', '--json'])).stdout).toContain('"origin":{"queue":"done","offset":2')
  })

  test('have a history that shows what happened to them', async () => {
    await sluice.queues.ensure('told', { retain: { age: '1d' } })
    await sluice.publish('told', 'x', { delay: '1h' })
    await sluice.queues.reschedule('told', { offset: 0 }, { delay: 0 })
    const [message] = await sluice.pull('told', { wait: '5s' })
    await message!.ack()
    const { stdout } = await run(['history', 'told', '0'])
    expect(stdout).toMatch(/^TIME +EVENT +DUE/)
    const events = stdout.trimEnd().split('\n').slice(1)
    expect(events.map((line) => line.split(/ +/)[1])).toEqual([
      'published',
      'rescheduled',
      'delivered',
      'acked',
    ])
    expect(JSON.parse((await run(['history', 'told', '0', '--json'])).stdout)).toMatchObject({
      queue: 'told',
      offset: 0,
      complete: true,
      events: [{ event: 'published' }, {}, {}, { event: 'acked' }],
    })
  })
})

test('a reader that closes its pipe ends a long list without an error', async () => {
  await sluice.queues.ensure('long')
  await sluice.publishBatch(
    'long',
    Array.from({ length: 3_000 }, () => ({ body: 'x'.repeat(200) })),
  )
  const child = start(['peek', 'long', '--limit', '3000', '--json'], { SLUICE_URL: broker.url })
  child.stdout.once('data', () => child.stdout.destroy())
  const result = await ended(child)
  expect(result).toMatchObject({ code: 0, stderr: '' })
  const all = await run(['peek', 'long', '--limit', '3000'])
  expect(all.stdout.split('\n')).toHaveLength(3_002)
})
