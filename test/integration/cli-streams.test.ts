/** The commands of streams on the command line: definition, publishing, reading, and wrong values. */
import { STREAM_OPTIONS } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { broker, ended, expectFailure, run, runProcess, sluice, start, until } from './cli.js'

function documents(stdout: string): Record<string, unknown>[] {
  return stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)
}

describe.concurrent('wrong values', () => {
  const mistakes: readonly (readonly [args: string, what: RegExp, hint: RegExp])[] = [
    ['stream', /needs a command/, /ensure, get, list, delete, publish, read/],
    ['stream ensure s --retain-age 30', /--retain-age is "30"; it must be a duration/, /with a unit/],
    ['stream ensure s --retain-bytes 10x', /--retain-bytes is "10x".* size/, /'10mb'/],
    ['stream ensure s --retain-messages -1', /--retain-messages/, /\S/],
    ['stream ensure s --wait-for-groups-bytes', /--wait-for-groups-bytes/, /\S/],
    ['stream ensure s --wait-for-groups-bytes yes', /--wait-for-groups-bytes is "yes".* size/, /'10mb'/],
    ['stream read s --from middle', /--from is "middle"/, /offset/],
    ['stream read s --limit 0', /--limit is "0"/, /\S/],
    ['stream publish s b --delay 1s', /Unknown option --delay/, /\S/],
    ['stream delete s', /needs confirmation/, /--yes/],
  ]
  test.each(mistakes)('%s is a usage error', async (args, what, hint) => {
    await sluice.streams.ensure('s')
    expectFailure(await run(args.split(' ')), 2, what, hint)
  })

  test.each(['stream get missing', 'stream read missing', 'stream delete missing -y'])(
    '%s names what is missing',
    async (args) => {
      expectFailure(await run(args.split(' ')), 4, /"missing"/, /\S/)
    },
  )

  test('a queue is not a stream', async () => {
    await sluice.queues.ensure('jobs')
    expectFailure(await run(['stream', 'get', 'jobs']), 2, /jobs is a queue/, /`stream` commands/)
  })
})

describe.concurrent('streams', () => {
  test('have a flag for each option', async () => {
    const { stdout } = await runProcess(['stream', 'ensure', '--help'])
    for (const name of Object.keys(STREAM_OPTIONS)) {
      const flag = name.replace(/Ms$/, '').replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
      expect(stdout).toContain(`--${flag} `)
    }
  })

  test('are created, changed, shown and deleted', async () => {
    const args = ['stream', 'ensure', 'life', '--retain-age', '7d', '--retain-bytes', '1gb']
    expect((await run(args)).stderr).toBe('Created the stream life.\n')
    expect((await run(args)).stderr).toBe('The stream life exists with these options.\n')
    expectFailure(
      await run(['stream', 'ensure', 'life', '--retain-age', '8d']),
      1,
      /other options/,
      /--update/,
    )
    await run(['stream', 'ensure', 'life', '--retain-age', 'none', '--retain-messages', '5000', '--update'])
    await run(['stream', 'publish', 'life', 'hello', '--key', 'k'])
    const shown = (await run(['stream', 'get', 'life'])).stdout
    for (const line of [
      /name +life/,
      /messages +1/,
      /next offset +1/,
      /retain age +none/,
      /retain messages +5,000/,
    ])
      expect(shown).toMatch(line)
    const info = JSON.parse((await run(['stream', 'get', 'life', '--json'])).stdout) as object
    expect(info).toMatchObject({
      name: 'life',
      options: { retention: { age: 0, bytes: 1e9, messages: 5_000 } },
    })
    expect((await run(['stream', 'list'])).stdout).toMatch(/^NAME +MESSAGES .*\n(?:.*\n)*life +1 /)
    expect((await run(['stream', 'rm', 'life', '-y'])).stderr).toBe(
      'Deleted the stream life with 1 message.\n',
    )
  })

  test('are read from a place, by key and header, with a limit, as text and as JSON', async () => {
    await sluice.streams.ensure('log')
    const input = Array.from({ length: 2_000 }, (_, i) => `line ${i}`).join('\n')
    const published = await run(['stream', 'publish', 'log', '--header', 'h=v'], { input: `${input}\n` })
    expect(published.stderr).toMatch(/^Published 2,000 messages to log, offsets 0 to 1999/)
    await sluice.publish('log', { a: 1 }, { key: 'k', id: 'i' })
    const all = await run(['stream', 'read', 'log'])
    expect(all).toEqual({ code: 0, stdout: `${input}\n{"a":1}\n`, stderr: '' })
    const limited = await run(['stream', 'read', 'log', '--from', '1990', '--limit', '3', '--json'])
    expect(documents(limited.stdout).map(({ offset, body }) => [offset, body])).toEqual([
      [1990, 'line 1990'],
      [1991, 'line 1991'],
      [1992, 'line 1992'],
    ])
    const keyed = documents((await run(['stream', 'read', 'log', '--key', 'k', '--json'])).stdout)
    expect(keyed).toEqual([
      {
        ...{ stream: 'log', offset: 2000, id: 'i', key: 'k', headers: {}, bodyType: 'data', body: { a: 1 } },
        publishedAt: expect.any(String) as unknown,
      },
    ])
    expect((await run(['stream', 'read', 'log', '--header', 'h=other'])).stdout).toBe('')
    expect((await run(['stream', 'read', 'log', '--from', '2020-01-01T00:00Z', '--limit', '1'])).stdout).toBe(
      'line 0\n',
    )
    expect((await run(['stream', 'read', 'log', '--from', '2100-01-01T00:00Z'])).stdout).toBe('')
    expectFailure(
      await run(['stream', 'read', 'log', '--from', '9999']),
      4,
      /The stream log has no message 9999 yet/,
      /stream get/,
    )
  })

  test('are replayed to queues, and queues to streams', async () => {
    await sluice.streams.ensure('replayed')
    await sluice.queues.ensure('copied', { retain: { age: '1d' } })
    for (const body of ['a', 'b']) await sluice.publish('replayed', body)
    const copied = await run(['replay', 'replayed', '--to', 'copied'])
    expect(copied.stderr).toBe('Published 2 messages of the stream replayed again, to the queue copied.\n')
    for (const message of await sluice.pull('copied', { max: 2 })) await message.ack()
    const back = await run(['replay', 'copied', '--to', 'replayed'])
    expect(back.stderr).toBe('Published 2 messages of the queue copied again, to the stream replayed.\n')
    expect((await sluice.streams.get('replayed')).messages).toBe(4)
    const again = await run(['replay', 'replayed', '--from', '2'])
    expect(again.stderr).toBe('Published 2 messages of the stream replayed again.\n')
    expect((await sluice.streams.get('replayed')).messages).toBe(6)
    const none = await run(['replay', 'replayed', '--to', 'copied', '--until', '2020-01-01'])
    expect(none.stderr).toBe('No message of the stream replayed matches.\n')
  })

  test('are followed until a signal', async () => {
    await sluice.streams.ensure('live')
    const child = start(['stream', 'read', 'live', '--from', 'last', '--follow'], { SLUICE_URL: broker.url })
    let printed = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text))
    const result = ended(child)
    await until(async () => (await sluice.streams.get('live')).readers === 1)
    await sluice.publish('live', 'one')
    await until(() => Promise.resolve(printed === 'one\n'))
    await sluice.publish('live', 'two')
    await until(() => Promise.resolve(printed === 'one\ntwo\n'))
    child.kill('SIGINT')
    expect((await result).code).toBe(130)
  })
})
