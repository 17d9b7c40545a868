/** `sluice topic` on the built command line. */
import { describe, expect, test } from 'vitest'
import { expectFailure, run, sluice } from './cli.js'

describe.concurrent('wrong values', () => {
  const mistakes: readonly (readonly [args: readonly string[], what: RegExp, hint: RegExp])[] = [
    [['topic'], /needs a command/, /bind, unbind, list, test, publish/],
    [['topic', 'bind', 'a..b', 'q'], /"a..b" has an empty level/, /orders\.\*\.created/],
    [['topic', 'bind', 'a', 'q', '--any'], /--any is given without --header/, /Add --header/],
    [['topic', 'publish', 'a.*', 'x'], /the level "\*"/, /orders\.eu\.created/],
    [['topic', 'publish', 'a', 'x', '--unroutable', 'no'], /--unroutable is "no"/, /one of the two/],
    [['topic', 'publish', 'a', 'x', '--file', 'y'], /mutually exclusive/, /one of them/],
  ]
  test.each(mistakes)('%j', async (args, what, hint) => {
    expectFailure(await run(args), 2, what, hint)
  })
})

describe('topics', () => {
  test('are bound, listed, tested, published to and unbound', async () => {
    for (const name of ['cli-invoices', 'cli-vip']) await sluice.queues.ensure(name)
    const bound = await run(['topic', 'bind', 'cli.*.created', 'cli-invoices'])
    expect(bound).toMatchObject({ code: 0, stdout: '', stderr: 'Bound cli-invoices to cli.*.created.\n' })
    const again = await run(['topic', 'bind', 'cli.*.created', 'cli-invoices'])
    expect(again.stderr).toBe('cli-invoices is already bound to cli.*.created.\n')
    const flags = ['--header', 'vip=yes', '--header', 'tier=gold', '--any']
    const vip = await run(['topic', 'bind', 'cli.#', 'cli-vip', ...flags, '--json'])
    expect(JSON.parse(vip.stdout)).toEqual({ pattern: 'cli.#', target: 'cli-vip', changed: true })
    const listed = await run(['topic', 'list', '--target', 'cli-vip'])
    expect(listed.stdout).toMatch(
      /^PATTERN +TARGET +HEADERS +CREATED\ncli\.# +cli-vip +any of tier=gold, vip=yes +2.+Z\n$/,
    )
    const tested = await run(['topic', 'test', 'cli.eu.created'])
    expect(tested.stdout.split('\n')).toHaveLength(4)
    const plain = await run(['topic', 'test', 'cli.eu.created', '--header', 'vip=no', '--json'])
    expect(JSON.parse(plain.stdout)).toMatchObject([{ target: 'cli-invoices', bindings: [{}] }])
    const one = await run(['topic', 'publish', 'cli.eu.created', 'one'])
    expect(one).toMatchObject({ code: 0, stdout: '1 queue\n', stderr: '' })
    const two = await run(
      ['topic', 'publish', 'cli.eu.created', '--header', 'vip=yes', '--body-type', 'json', '--json'],
      { input: '{"id":2}' },
    )
    expect(JSON.parse(two.stdout)).toEqual({ topic: 'cli.eu.created', targets: 2 })
    const bodies = (await sluice.pull('cli-invoices', { max: 5 })).map(({ body }) => body)
    expect(bodies).toEqual(['one', { id: 2 }])
    const removed = await run(['topic', 'unbind', 'cli.#', 'cli-vip', ...flags])
    expect(removed.stderr).toBe('Unbound cli-vip from cli.#.\n')
    const missing = await run(['topic', 'unbind', 'cli.#', 'cli-vip', ...flags])
    expect(missing.stderr).toBe('cli-vip has no such binding.\n')
  })

  test('without a binding refuse a message, or drop it', async () => {
    const refused = await run(['topic', 'publish', 'cli-none', 'x'])
    expectFailure(refused, 4, /No binding matches the topic cli-none/, /sluice topic bind/)
    const dropped = await run(['topic', 'publish', 'cli-none', 'x', '--unroutable', 'drop'])
    expect(dropped.stdout).toBe('0 queues\n')
    const tested = await run(['topic', 'test', 'cli-none'])
    expect(tested).toMatchObject({ code: 0, stdout: '', stderr: 'No binding matches the topic cli-none.\n' })
    expectFailure(
      await run(['topic', 'bind', '#', 'cli-missing']),
      4,
      /There is no queue "cli-missing"/,
      /\S/,
    )
  })
})
