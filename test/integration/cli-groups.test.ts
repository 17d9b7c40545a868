/** Groups on the command line: their own commands, and the commands of queues that take a group. */
import { GROUP_OPTIONS } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { expectFailure, run, runProcess, sluice, until } from './cli.js'

type Document = Record<string, unknown>

const words = (text: string): string[] => text.split(' ')

async function json(args: string): Promise<Document> {
  const { code, stdout } = await run([...words(args), '--json'])
  expect(code).toBe(0)
  return JSON.parse(stdout) as Document
}

async function stderr(args: string): Promise<string> {
  const result = await run(words(args))
  expect(result).toMatchObject({ code: 0, stdout: '' })
  return result.stderr
}

async function streamOf(name: string, count: number): Promise<void> {
  await sluice.streams.ensure(name)
  if (count === 0) return
  const bodies = Array.from({ length: count }, (_, at) => ({ body: `message ${at}`, key: `k${at % 2}` }))
  await sluice.publishBatch(name, bodies)
}

describe.concurrent('wrong values', () => {
  const mistakes: readonly (readonly [args: string, what: RegExp, hint: RegExp])[] = [
    ['group', /needs a command/, /ensure, get, list, move, delete/],
    ['group ensure clicks', /must have the form stream@group/, /STREAM@GROUP/],
    ['group ensure a@b@c', /must have the form stream@group/, /\S/],
    [
      'group ensure a@b --from middle',
      /--from is "middle"; it must be first, last, an offset or a time/,
      /\S/,
    ],
    ['group ensure a@b --max-deliveries 0', /--max-deliveries is "0"/, /bounds/],
    ['group ensure a@b --ttl 5s', /Unknown option --ttl/, /\S/],
    ['group move a@b', /--to is not given/, /first, last, an offset or a time/],
    ['group list a@b', /a@b is a group of the stream a, not a queue/, /`group` commands/],
    ['queue get a@b', /a@b is a group of the stream a, not a queue/, /`group` commands/],
    ['publish a@b x', /a@b is a group of the stream a, not a queue/, /\S/],
  ]
  test.each(mistakes)('%s is a usage error', async (args, what, hint) => {
    expectFailure(await run(words(args)), 2, what, hint)
  })

  test.each([
    ['group get missing@a', /no group "missing@a"/, /sluice group ensure/],
    ['group move missing@a --to first', /no group "missing@a"/, /sluice group list/],
    ['group delete missing@a -y', /no group "missing@a"/, /sluice group list/],
    ['group list missing', /"missing"/, /sluice stream/],
    ['group ensure missing@a', /"missing"/, /sluice stream/],
    ['consume missing@a', /no group "missing@a"/, /sluice group/],
    ['explain missing@a', /no group "missing@a"/, /sluice group/],
  ] as const)('%s names what is missing', async (args, what, hint) => {
    expectFailure(await run(words(args)), 4, what, hint)
  })

  test('a queue has no groups, and a place must be in the stream', async () => {
    await sluice.queues.ensure('gq')
    await streamOf('gp', 3)
    expectFailure(await run(words('group ensure gq@a')), 2, /gq is a queue, not a stream/)
    expectFailure(await run(words('group list gq')), 2, /gq is a queue, not a stream/)
    const late = await run(words('group ensure gp@a --from 4'))
    expectFailure(late, 4, /has no message 4 yet; its next offset is 3/, /sluice stream get/)
    await sluice.groups.ensure('gp@b')
    expectFailure(await run(words('group move gp@b --to 4')), 4, /has no message 4 yet/, /sluice stream get/)
    expectFailure(await run(words('group delete gp@b')), 2, /needs confirmation/, /--yes/)
  })
})

describe.concurrent('groups', () => {
  test('have a flag for each option', async () => {
    const { stdout } = await runProcess(['group', 'ensure', '--help'])
    let checked = 0
    for (const name of Object.keys(GROUP_OPTIONS)) {
      const flag = name
        .replace(/(?:Per)?Ms$|Messages$/, '')
        .replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
      expect(stdout).toContain(`--${flag} `)
      checked++
    }
    expect(checked).toBe(12)
    expect(stdout).not.toContain('--dedup-window')
    expect((await runProcess(['group', '--help'])).stdout).toMatch(
      /take a group instead of a queue: consume, peek/,
    )
  })

  test('are created, changed, shown, moved, listed and deleted', async () => {
    await streamOf('life', 5)
    expect(await stderr('group ensure life@billing --max-deliveries 5')).toBe(
      'Created the group life@billing at offset 0.\n',
    )
    expect(await stderr('group ensure life@billing')).toBe('The group life@billing is unchanged.\n')
    expectFailure(
      await run(words('group ensure life@billing --max-deliveries 6')),
      1,
      /--max-deliveries is 5, not 6/,
      /--update/,
    )
    expect(
      await stderr('group ensure life@billing --max-deliveries 6 --key-rate 9/1m --update --from 3'),
    ).toBe(
      'Changed the group life@billing: max-deliveries 5 → 6, key-rate none → 9/1m.\n' +
        'It keeps its position, 0; `sluice group move` changes it.\n',
    )
    expect(await json('group ensure life@late --from last --no-dead-letter --single')).toMatchObject({
      created: true,
      group: { name: 'life@late', position: 5, lag: 0, options: { single: true, deadLetter: null } },
    })
    const shown = (await run(words('group get life@billing'))).stdout
    for (const line of [
      /^name +life@billing$/m,
      /^stream +life$/m,
      /^position +0$/m,
      /^lag +5$/m,
      /^missed +0$/m,
      /^max deliveries +6$/m,
      /^key rate +9\/1m$/m,
    ])
      expect(shown).toMatch(line)
    expect(await json('group get life@billing')).toMatchObject({ lag: 5, missed: 0, members: [] })
    expect((await run(words('group list life'))).stdout).toMatch(
      /^NAME +POSITION +LAG +OLDEST +MISSED .*\nlife@billing +0 +5 .*\nlife@late +5 +0 +- /,
    )
    expect(await stderr('group move life@billing --to 3')).toBe(
      'Moved the group life@billing to offset 3; its lag is 2 messages.\n',
    )
    expect(await json('group move life@billing --to last')).toMatchObject({ position: 5, lag: 0 })
    expect(await json('group move life@billing --to 2020-01-01T00:00Z')).toMatchObject({ lag: 5 })
    expect(await stderr('group rm life@billing -y')).toBe(
      'Deleted the group life@billing, with a lag of 5 messages.\n',
    )
    expect(await json('group delete life@late --yes')).toEqual({ name: 'life@late', messages: 0 })
    expect(await stderr('group list life')).toBe(
      'The stream life has no groups; `sluice group ensure life@GROUP` creates one.\n',
    )
    expect(await json('group list life')).toEqual([])
  })

  test('are consumed, and their consumers are shown', async () => {
    await streamOf('eaten', 4)
    await sluice.groups.ensure('eaten@a')
    const printed = await run(words('consume eaten@a --count 2'))
    expect(printed).toEqual({ code: 0, stdout: 'message 0\nmessage 1\n', stderr: '' })
    const [next] = (await run(words('consume eaten@a --count 1 --json'))).stdout.split('\n')
    expect(JSON.parse(next!)).toMatchObject({ queue: 'eaten@a', offset: 2, key: 'k0', body: 'message 2' })
    const rest = await run(words('consume eaten@a --wait 100ms'))
    expect(rest).toEqual({ code: 0, stdout: 'message 3\n', stderr: '' })
    expect(await json('group get eaten@a')).toMatchObject({ position: 4, lag: 0 })
    await sluice.groups.move('eaten@a', { to: 'first' })
    const held = run(words('consume eaten@a --no-ack'))
    await until(async () => (await sluice.groups.get('eaten@a')).leased === 2)
    const { members } = await json('group get eaten@a')
    const [member] = members as [Document]
    expect(member).toMatchObject({ client: 'sluice consume', leased: 2 })
    expect((await run(words('group get eaten@a'))).stdout).toMatch(
      /leased +2\n[^]*\n +ID +CLIENT .*\n.* sluice consume /,
    )
    expect((await run(words('queue consumers eaten@a'))).stdout).toMatch(/sluice consume/)
    expect(await stderr(`queue close-consumer eaten@a ${String(member['id'])}`)).toBe(
      `Closed the consumer ${String(member['id'])} of the group eaten@a; 2 messages returned to the group.\n`,
    )
    expect((await held).code).toBe(1)
    expect(await stderr('queue consumers eaten@a')).toBe('The group eaten@a has no consumers.\n')
  })

  test('are peeked at, explained, paused and resumed', async () => {
    await streamOf('seen', 3)
    await sluice.groups.ensure('seen@a', { keyConcurrency: 9 })
    expect(await stderr('peek seen@a')).toMatch(/^The group seen@a has reached no message that is not done;/)
    expect((await run(words('explain seen@a'))).stdout).toMatch(
      /^The group has no consumer\.\n.*sluice group get seen@a/,
    )
    const [first, second] = await sluice.pull('seen@a', { max: 2 })
    await first!.retry({ delay: '1h', reason: 'later' })
    const peeked = (await run(words('peek seen@a --json'))).stdout.trimEnd().split('\n')
    expect(peeked.map((line) => JSON.parse(line) as Document)).toMatchObject([
      { offset: 0, state: 'scheduled', attempts: 1 },
      { offset: 1, state: 'leased' },
      { offset: 2, state: 'ready' },
    ])
    expect((await run(words('explain seen@a 0'))).stdout).toMatch(
      /^The message failed, and waits for its retry/,
    )
    expect(await json('explain seen@a 3')).toMatchObject({ reasons: [{ code: 'unpublished', offset: 3 }] })
    expect(await stderr('reschedule seen@a --offset 0 --delay 0')).toMatch(
      /^Message 0 of the group seen@a is due at .*, now\.\n$/,
    )
    expect(await stderr('cancel seen@a --offset 0')).toBe('Cancelled message 0 of the group seen@a.\n')
    expect(await stderr('queue pause seen@a')).toBe('Paused the group seen@a.\n')
    expect(await stderr('queue pause seen@a')).toBe('The group seen@a is already paused.\n')
    expect(await sluice.pull('seen@a')).toEqual([])
    expect((await run(words('explain seen@a 2'))).stdout).toMatch(
      /^The group is paused\.\n.*queue resume seen@a/,
    )
    expect((await run(words('group get seen@a'))).stdout).toMatch(/^paused +yes$/m)
    expect(await stderr('queue resume seen@a')).toBe('Resumed the group seen@a.\n')
    await second!.ack()
    const [last] = await sluice.pull('seen@a')
    expect(last!.offset).toBe(2)
    await last!.ack()
  })

  test('have dead letters of their own', async () => {
    await streamOf('died', 3)
    await sluice.queues.ensure('died/manual')
    for (const name of ['died@a', 'died@b']) await sluice.groups.ensure(name, { keyConcurrency: 9 })
    for (const message of await sluice.pull('died@a', { max: 3 })) await message.deadLetter('broken')
    expect((await run(words('dead list died@a'))).stdout).toMatch(
      /rejected.* broken +message 0\n[^]*message 2\n$/,
    )
    expect(await stderr('dead list died@b')).toBe('The group died@b has no dead messages.\n')
    expect((await run(words('dead get died@a 1'))).stdout).toContain('message 1')
    expectFailure(
      await run(words('dead delete died@a --offset 7 -y')),
      4,
      /The group died@a has no dead message at offset 7/,
    )
    expect(await stderr('dead redrive died@a --dry-run')).toBe(
      'This would return 3 dead messages to the group died@a.\n',
    )
    expect(await stderr('dead redrive died@a --offset 0')).toBe(
      'Returned 1 dead message to the group died@a.\n',
    )
    expect(await json('dead redrive died@a --limit 1 --to died/manual')).toMatchObject({
      queue: 'died@a',
      to: 'died/manual',
      redriven: 1,
    })
    expect(await stderr('dead delete died@a -y')).toBe('Deleted 1 dead message of the group died@a.\n')
    expect(await sluice.groups.get('died@a')).toMatchObject({ dead: 0, lag: 1 })
    const [moved] = await sluice.pull('died/manual')
    expect(moved).toMatchObject({ body: 'message 1', headers: { 'sluice-origin-queue': 'died@a' } })
  })
})
