/** Requests and replies on the built command line. */
import { DeadLetter } from '@sluice/client'
import { expect, test } from 'vitest'
import { expectFailure, run, sluice } from './cli.js'

test('prints the reply to a request, or why there is none', async () => {
  await sluice.queues.ensure('cli-quotes')
  expectFailure(
    await run(['request', 'cli-quotes', 'hi', '--timeout', '200ms']),
    1,
    /No reply to a request to the queue cli-quotes has arrived within 200 ?ms/,
    /--timeout/,
  )
  const worker = sluice.consume('cli-quotes', async (message) => {
    if (message.body === 'wrong') throw new DeadLetter('no such item')
    const reply = typeof message.body === 'string' ? `${message.body}!` : { got: message.body }
    await message.reply(reply, { headers: { by: message.key ?? 'none' } })
  })
  const text = await run(['request', 'cli-quotes', 'hi'])
  expect(text).toMatchObject({ code: 0, stdout: 'hi!\n', stderr: '' })
  const flags = ['--body-type', 'json', '--key', 'k', '--priority', '3', '--json']
  const data = await run(['request', 'cli-quotes', ...flags], { input: '{"item":7}' })
  expect(JSON.parse(data.stdout)).toEqual({
    queue: 'cli-quotes',
    bodyType: 'data',
    body: { got: { item: 7 } },
    headers: { by: 'k' },
  })
  expectFailure(
    await run(['request', 'cli-quotes', 'wrong']),
    1,
    /A consumer of the queue cli-quotes gave up the request: no such item/,
    /dead letters/,
  )
  expectFailure(await run(['request', 'cli-missing', 'hi']), 4, /There is no queue "cli-missing"/, /\S/)
  await worker.close()
})

test('requests are answered with a text, and other messages only printed', async () => {
  await sluice.queues.ensure('cli-answers')
  await sluice.publish('cli-answers', 'no request')
  const consumed = run(['consume', 'cli-answers', '--reply-with', 'the answer', '--count', '3'])
  const asked = await Promise.all([
    sluice.request('cli-answers', 'first'),
    run(['request', 'cli-answers', 'second']),
  ])
  expect(asked[0].body).toBe('the answer')
  expect(asked[1]).toMatchObject({ code: 0, stdout: 'the answer\n' })
  const { code, stdout } = await consumed
  expect(code).toBe(0)
  expect(stdout.trimEnd().split('\n').toSorted()).toEqual(['first', 'no request', 'second'])
  expect(await sluice.queues.get('cli-answers')).toMatchObject({ ready: 0, leased: 0, acked: 3 })
  expectFailure(
    await run(['consume', 'cli-answers', '--reply-with', 'x', '--no-ack']),
    2,
    /--reply-with and --no-ack are mutually exclusive/,
    /Omit --no-ack/,
  )
})
