/** `sluice request` on the built command line. */
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
