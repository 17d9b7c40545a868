import { expect, test } from 'vitest'

const entryPoints = {
  '@sluice/protocol': () => import('@sluice/protocol'),
  '@sluice/client': () => import('@sluice/client'),
  '@sluice/server': () => import('@sluice/server'),
}

test.each(Object.entries(entryPoints))('%s resolves', async (_name, load) => {
  await expect(load()).resolves.toBeTypeOf('object')
})
