/** Schedules through the SDK and the command line, with a broker over TCP. */
import { queue, topic, type ScheduleDetails, type SluiceError } from '@sluice/client'
import { describe, expect, expectTypeOf, test } from 'vitest'
import { broker, expectFailure, run, sluice } from './cli.js'

const failed = (work: Promise<unknown>): Promise<SluiceError> =>
  work.then(
    () => Promise.reject(new Error('the call did not fail')),
    (error: SluiceError) => error,
  )

describe('the SDK', () => {
  test('publishes the message of each tick, with its options', async () => {
    await sluice.queues.ensure('ticking')
    const body = { list: [1, 'two'], at: new Date(5) }
    const { created, changed, schedule } = await sluice.schedules.ensure('ticking', {
      every: '1s',
      to: 'ticking',
      body,
      key: 'k',
      priority: 3,
      ttl: '1h',
      headers: { own: 'yes' },
    })
    expect([created, changed]).toEqual([true, true])
    expect(schedule).toMatchObject({ name: 'ticking', every: 1_000, to: 'ticking', missed: 'once', fired: 0 })
    const [message] = await sluice.pull('ticking', { wait: '10s' })
    expect(message!.body).toEqual(body)
    expect([message!.key, message!.priority, message!.headers['own']]).toEqual(['k', 3, 'yes'])
    expect(message!.headers['sluice-schedule']).toBe('ticking')
    await message!.ack()
    const details = await sluice.schedules.get('ticking')
    expect(details.fired).toBeGreaterThanOrEqual(1)
    expect(details.lastTick!.getTime()).toBeGreaterThanOrEqual(Number(message!.headers['sluice-tick']))
    expect(details.nextTicks).toHaveLength(5)
    expect(details.message).toEqual({
      body,
      id: undefined,
      key: 'k',
      priority: 3,
      ttl: 3_600_000,
      headers: { own: 'yes' },
    })
    const { fired } = await sluice.schedules.delete('ticking')
    expect(fired).toBeGreaterThanOrEqual(1)
    const error = await failed(sluice.schedules.get('ticking'))
    expect([error.code, error.queue]).toEqual(['SCHEDULE_NOT_FOUND', undefined])
  })

  test('publishes to a topic, and runs at once', async () => {
    const Nightly = topic<string>('nightly.run')
    await sluice.queues.ensure('nightly-a')
    await sluice.queues.ensure('nightly-b')
    await sluice.topics.bind('nightly.#', 'nightly-a')
    await sluice.topics.bind('nightly.run', 'nightly-b')
    const ensured = await sluice.schedules.ensure('nightly', {
      cron: '0 3 * * *',
      timeZone: 'America/New_York',
      to: Nightly,
      body: 'run',
    })
    expect(ensured.schedule).toMatchObject({ to: '#nightly.run', timeZone: 'America/New_York' })
    expect(await sluice.schedules.runNow('nightly')).toEqual({ targets: 2 })
    for (const name of ['nightly-a', 'nightly-b']) expect((await sluice.queues.get(name)).ready).toBe(1)
    const other = { cron: '0 3 * * *', to: Nightly, body: 'run', unroutable: 'drop', update: true } as const
    expect((await sluice.schedules.ensure('nightly', other)).schedule.to).toBe('#?nightly.run')
  })

  test('lists all schedules over several pages, pauses and resumes', async () => {
    await sluice.queues.ensure('listed')
    const names = Array.from({ length: 25 }, (_, at) => `listed-${String(at).padStart(2, '0')}`)
    for (const name of names)
      await sluice.schedules.ensure(name, { at: new Date('2099-01-01'), to: 'listed', body: null })
    const found = (await sluice.schedules.list()).filter(({ to }) => to === 'listed')
    expect(found.map(({ name }) => name)).toEqual(names)
    expect(found[0]).toMatchObject({ at: new Date('2099-01-01'), nextTicks: [new Date('2099-01-01')] })
    expect(await sluice.schedules.pause(names[0]!)).toEqual({ changed: true })
    expect(await sluice.schedules.pause(names[0]!)).toEqual({ changed: false })
    expect(await sluice.schedules.get(names[0]!)).toMatchObject({ paused: true, nextTicks: [] })
    expect(await sluice.schedules.resume(names[0]!)).toEqual({ changed: true })
  })

  test('shows why a tick has not fired', async () => {
    await sluice.queues.ensure('gone')
    await sluice.schedules.ensure('gone', { every: '1s', to: 'gone', body: '' })
    await sluice.queues.delete('gone')
    await expect
      .poll(async () => (await sluice.schedules.get('gone')).error, { timeout: 10_000 })
      .toMatchObject({ code: 'QUEUE_NOT_FOUND', message: 'There is no queue "gone".' })
    await sluice.schedules.delete('gone')
  })

  test('refuses what is wrong before or at the broker', async () => {
    await sluice.queues.ensure('wrong')
    const base = { to: 'wrong', body: 'x' }
    const codes = [
      { cron: '* * * *' },
      { cron: '* * * * *', timeZone: 'Mars' },
      { every: '999ms' },
      { every: 'often' },
      { every: '1s', at: 1 },
      { every: '1s', unroutable: 'drop' },
      { every: '1s', delay: '1s' },
      { every: '1s', body: () => {} },
      { every: '1s', body: 'x'.repeat((16 << 10) + 1) },
      { every: '1s', to: 'no-such-queue' },
    ].map(
      async (more) => (await failed(sluice.schedules.ensure('wrong', { ...base, ...more } as never))).code,
    )
    expect(await Promise.all(codes)).toEqual([
      'INVALID_CRON',
      'UNKNOWN_TIME_ZONE',
      'INVALID_INTERVAL',
      'INVALID_INTERVAL',
      'OPTION_CONFLICT',
      'OPTION_CONFLICT',
      'INVALID_ARGUMENT',
      'INVALID_BODY',
      'MESSAGE_TOO_LARGE',
      'QUEUE_NOT_FOUND',
    ])
    expect((await failed(sluice.schedules.pause('-'))).code).toBe('INVALID_NAME')
  })

  test('checks the type of the body against that of the queue', () => {
    const Typed = queue<{ id: number }>('typed')
    const ensure = (): unknown =>
      sluice.schedules.ensure('typed', { every: '1s', to: Typed, body: { id: 1 } })
    // @ts-expect-error The queue has bodies with an id.
    const wrong = (): unknown => sluice.schedules.ensure('typed', { every: '1s', to: Typed, body: 'x' })
    expect([ensure, wrong]).toHaveLength(2)
    expectTypeOf<ScheduleDetails<string>['message']['body']>().toEqualTypeOf<string>()
  })
})

describe('the command line', () => {
  test('creates, shows, lists, runs, pauses and deletes', async () => {
    expect(broker.url).toContain('sluice://')
    await sluice.queues.ensure('cli')
    const flags = ['--cron', '0 3 * * *', '--time-zone', 'Europe/Berlin', '--to', 'cli', '--body', 'run']
    const created = await run(['schedule', 'ensure', 'cli', ...flags, '--key', 'k', '--header', 'a=b'])
    expect(created.stderr).toMatch(/^Created the schedule cli\. Its next tick is \S+Z\.\n$/)
    const again = await run(['schedule', 'ensure', 'cli', ...flags, '--key', 'k', '--header', 'a=b'])
    expect(again.stderr).toBe('The schedule cli is unchanged.\n')
    expectFailure(
      await run(['schedule', 'ensure', 'cli', ...flags]),
      1,
      /exists with other settings/,
      /--update/,
    )
    expect((await run(['schedule', 'ensure', 'cli', ...flags, '--update'])).stderr).toMatch(/^Changed the/)

    const shown = (await run(['schedule', 'get', 'cli'])).stdout
    expect(shown).toMatch(/^when {7,}0 3 \* \* \* Europe\/Berlin$/m)
    expect(shown).toMatch(/^body {7,}run$/m)
    const json = JSON.parse((await run(['schedule', 'get', 'cli', '--json'])).stdout) as ScheduleDetails
    expect(json).toMatchObject({ name: 'cli', fired: 0, message: { bodyType: 'text', body: 'run' } })

    const next = await run(['schedule', 'next', 'cli', '--count', '3'])
    expect(next.stdout).toMatch(/^(\S+T0[12]:00:00\.000Z\n){3}$/)
    expect((await run(['schedule', 'list'])).stdout).toMatch(
      /^cli +0 3 \* \* \* Europe\/Berlin +cli +\S+Z +- +0 +active$/m,
    )
    expect((await run(['schedule', 'run', 'cli'])).stdout).toBe('offset 0\n')
    expect((await run(['schedule', 'pause', 'cli'])).stderr).toBe('Paused the schedule cli.\n')
    expect((await run(['schedule', 'list'])).stdout).toMatch(/^cli .* paused$/m)
    expect((await run(['schedule', 'resume', 'cli'])).stderr).toBe('Resumed the schedule cli.\n')
    expect((await run(['schedule', 'rm', 'cli', '-y'])).stderr).toBe(
      'Deleted the schedule cli, which fired 0 times.\n',
    )
    expectFailure(await run(['schedule', 'get', 'cli']), 4, /no schedule "cli"/, /schedule list/)
  })

  test('takes intervals, times, topics and bodies from files', async () => {
    const every = ['--every', '10m', '--start', '2026-01-01T00:00Z', '--to', '#?cli.topic', '--missed', 'all']
    const made = await run(
      ['schedule', 'ensure', 'e', ...every, '--file', '-', '--body-type', 'json', '--json'],
      {
        input: '{"a":1}',
      },
    )
    expect(JSON.parse(made.stdout)).toMatchObject({
      created: true,
      schedule: { every: 600_000, start: '2026-01-01T00:00:00.000Z', to: '#?cli.topic', missed: 'all' },
    })
    const at = ['--at', '2099-01-01T00:00Z', '--to', '#cli.topic', '--body', 'x', '--paused']
    expect((await run(['schedule', 'ensure', 'a', ...at])).stderr).toBe('Created the schedule a.\n')
    expect((await run(['schedule', 'list'])).stdout).toMatch(/^a +at 2099-01-01T00:00:00\.000Z +#cli\.topic/m)
  })

  test.each([
    [['--to', 'q', '--body', 'x'], /exactly one of --cron, --every and --at/],
    [['--every', '1s', '--body', 'x'], /--to is missing/],
    [['--every', '1s', '--to', 'q'], /either --body or --file/],
    [['--every', '1s', '--to', 'q', '--body', 'x', '--time-zone', 'UTC'], /--time-zone has no effect/],
    [['--cron', '* * * * *', '--start', '1', '--to', 'q', '--body', 'x'], /--start has no effect/],
    [['--every', '10ms', '--to', 'q', '--body', 'x'], /--every is "10ms"; it must be at least 1s/],
    [['--every', '1s', '--to', 'q', '--body', 'x', '--missed', 'al'], /--missed is "al"/],
    [['--cron', '61 * * * *', '--to', '#t', '--body', 'x'], /Invalid value for minute: 61/],
  ])('refuses %j', async (flags, what) => {
    expectFailure(await run(['schedule', 'ensure', 's', ...flags]), 2, what)
  })
})
